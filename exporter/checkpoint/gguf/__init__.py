"""GGUF files: their tensors, their config and their tokenizer."""
