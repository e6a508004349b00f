"""The machine that figures are measured on: what it is, and what whoever measures may set in this process.

`setting` only describes. What changes the process is a call of its own, so that nothing is changed in passing.
"""

import ctypes
import platform
import sys
from typing import Any

import torch

from convpool.environment import device_name

_keeps_freed_memory = False


def pin_precision(device: torch.device) -> None:
    """Make torch's convolutions and products on a GPU round as float32 does: TF32, its default there, fails parity.

    Of torch's flags old and new, all that speak of it: one of them alone makes torch refuse to read the others, or
    leaves the word to a setting of the whole process.
    """
    if device.type == "cuda":
        cudnn: Any = torch.backends.cudnn
        cudnn.allow_tf32 = False
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")


def keep_freed_memory() -> None:
    """Keep glibc from returning freed memory to the system, in this process from now on; elsewhere nothing happens.

    By default each call that frees 100 KB or more may give pages back and fault them in again at the next; eager
    PyTorch allocates more than a fused layer, and would be charged for that.
    """
    global _keeps_freed_memory
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    if hasattr(libc, "mallopt"):
        _keeps_freed_memory = bool(libc.mallopt(trim_threshold, 2**31 - 1) and libc.mallopt(mmap_max, 0))


def setting(device: torch.device) -> str:
    """What the figures hold for, in a line: processor, threads, versions, allocator. It changes nothing."""
    capability = "" if device.type == "cuda" else f" ({torch.backends.cpu.get_cpu_capability()})"
    allocator = "allocator that keeps freed memory" if _keeps_freed_memory else "default allocator"
    return (
        f"{device_name(device)}{capability}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {allocator}"
    )
