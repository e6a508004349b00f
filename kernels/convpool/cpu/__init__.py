"""C++ kernels for CPUs: `kernels.py` says which one computes a call, `native.py` calls it; the sources are in src/.

Imports `eager`, `geometry`, `layout`, `protocol` and `torch_private`.
"""
