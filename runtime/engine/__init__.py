"""The step engine: tokens to logits. `engine.py` owns the graphs and the KV cache; `chunks.py` selects the buckets."""
