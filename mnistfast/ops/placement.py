"""Which tensors the Triton kernels take."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor


def takes_kernel(tensor: Tensor) -> bool:
    """Whether what is done to this tensor is one launch: it is on a GPU that Triton can use.

    Tensors of device "meta" stand for a GPU's, so that launches can be counted and compiled where there is none.
    """
    return _has_kernels(tensor.device.type)


@cache
def _has_kernels(device_type: str) -> bool:
    if device_type not in ("cuda", "meta"):
        return False
    from convpool.gpu.backend import BACKEND, INTERPRETED  # whose neighbours import Triton

    if device_type == "cuda":
        return BACKEND.unavailable() is None
    return find_spec("triton") is not None and not INTERPRETED  # an interpreter needs numbers
