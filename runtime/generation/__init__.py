"""Generation: from the logits of each step to new tokens."""
