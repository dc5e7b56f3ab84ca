"""Makes the registry's mindspore-lite wheel, which is tied to Python 3.7, importable on the Python that runs.

One file in that wheel depends on the Python version: the binding between its Python files and its C++ libraries. It is
replaced by our own (the .cpp files here), compiled against the wheel's public headers. On a machine with an official
mindspore_lite that imports, nothing here is needed and nothing is changed.
"""
