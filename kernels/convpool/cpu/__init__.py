"""C++ kernels for CPUs; the sources are in src/.

cost.py       what a call is estimated to take
kernels.py    which kernel computes a call
library.py    the compiled libraries
native.py     the backend, which calls them

Imports `cost`, `eager`, `geometry`, `layout`, `protocol` and `torch_private`.
"""
