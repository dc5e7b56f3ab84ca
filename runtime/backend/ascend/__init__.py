"""Runs artifacts of the Ascend targets: finds the device, checks it, holds its tensors, and explains its errors."""
