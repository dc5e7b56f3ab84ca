"""Writes an artifact: tensors as a stream of row blocks, the files with the weights, and the whole folder."""
