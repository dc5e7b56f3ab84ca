"""Reads checkpoints: a Hugging Face folder, a GGUF file or random weights, behind one interface."""
