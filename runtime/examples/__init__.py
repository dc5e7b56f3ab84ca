"""Examples to read and copy: each is one file. `python -m edgellama.examples.<name> --help` shows how to run it."""
