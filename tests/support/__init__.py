"""Helpers of the tests: checkpoints, artifacts, servers, stand-ins and child processes."""
