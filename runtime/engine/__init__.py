"""The step engine: tokens in, logits out; it owns the graphs and the KV cache."""
