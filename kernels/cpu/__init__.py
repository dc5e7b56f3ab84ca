"""The CPU kernels: C++ sources, and the Python side of the shared library that they are compiled into."""
