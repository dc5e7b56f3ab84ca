"""Translates an exported graph to ONNX and evaluates it, as an independent check."""
