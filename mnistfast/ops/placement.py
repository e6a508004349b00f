"""Which tensors the Triton kernels take."""

from __future__ import annotations

from functools import cache

from torch import Tensor


def takes_kernel(tensor: Tensor) -> bool:
    """Whether what is done to this tensor is one launch: it is on a GPU that Triton can use."""
    return tensor.device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    from convpool import planning  # here, for a data set is read without it

    return planning.backend("triton").unavailable() is None
