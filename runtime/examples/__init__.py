"""Examples to read and to copy from: each is one file, and runs as `python -m runtime.examples.<name> --help` says."""
