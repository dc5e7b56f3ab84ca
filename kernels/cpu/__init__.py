"""The CPU kernels, as one shared library that MindSpore Lite loads (see load.py)."""
