"""The backend `triton`: kernels for GPUs (and, with TRITON_INTERPRET=1, for their tests on CPUs).

backend.py plans a call without importing Triton. launch.py allocates results and launches forward.py, forward_patch.py,
weight_grad.py and input_grad.py, or by the split plan (split.py) epilogue.py; tiles.py is what these kernels share.
With what they are launched, forward_calls.py and backward_calls.py work out once for tensors of a kind: blocks by
config.py, the rest by specialise.py; prepared.py keeps the launches. offline.py compiles for GPUs that are not here.

Imports `eager`, `geometry`, `layout`, `protocol` and `torch_private`.
"""
