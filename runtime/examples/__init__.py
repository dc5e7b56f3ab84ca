"""Examples to read and copy: each is one file. `python -m runtime.examples.<name> --help` shows how to run it."""
