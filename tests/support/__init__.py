"""What several test files share: checkpoints, artifacts, servers, stand-ins and child processes."""
