"""C++ kernels for CPUs; the sources are in src/.

kernels.py    which kernel computes a call
library.py    the compiled libraries
native.py     the backend, which calls them

Imports `eager`, `geometry`, `layout`, `protocol` and `torch_private`.
"""
