"""The backend `triton`: kernels for GPUs (and, with TRITON_INTERPRET=1, for their tests on CPUs).

backend.py plans a call without importing Triton; launch.py launches forward.py, weight_grad.py and input_grad.py, or by
the split plan (split.py) epilogue.py, as config.py says; tiles.py is what they share. offline.py compiles them for GPUs
that are not here.

Imports `eager`, `geometry`, `layout`, `protocol` and `torch_private`.
"""
