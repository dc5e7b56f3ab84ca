"""Generation: from the logits of each step to new tokens. `decode.py` is the loop; the other files are its parts."""
