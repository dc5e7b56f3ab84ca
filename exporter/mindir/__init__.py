"""Lowers a traced graph to the MindIR that MindSpore Lite reads, and reads it back."""
