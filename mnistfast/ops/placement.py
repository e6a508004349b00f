"""Which tensors the Triton kernels take."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from convpool import planning


def takes_kernel(tensor: Tensor) -> bool:
    """Whether what is done to this tensor is one launch: it is on a GPU that Triton can use."""
    return _has_kernels(tensor.device.type)


@cache
def _has_kernels(device_type: str) -> bool:
    return device_type == "cuda" and planning.backend("triton").unavailable() is None
