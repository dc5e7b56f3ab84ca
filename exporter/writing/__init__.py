"""Writing an artifact: tensors as a stream of row blocks, the weight files, and the folder as a whole."""
