"""Quantized checkpoints of Hugging Face: AWQ, GPTQ, compressed-tensors and FP8, read as floats or as integers."""
