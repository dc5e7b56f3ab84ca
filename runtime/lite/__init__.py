"""Makes the registry's mindspore-lite wheel, which is built for Python 3.7, importable with this Python.

Only one file in that wheel depends on the Python version: the binding between its Python files and its C++ libraries.
This package replaces the binding with its own: a library with a C interface (the .cpp files here), compiled against the
wheel's public headers, and c_lite_wrapper.py, which calls it through ctypes. A wheel of this package has the library
ready-made. If an official mindspore_lite is installed and can be imported, this package is not needed and does nothing.
"""
