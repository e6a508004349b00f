"""C++ kernels for CPUs: which one computes a call (kernels), and calling it (native). Imports `geometry` to `eager`."""
