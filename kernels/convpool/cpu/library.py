"""The libraries of the backend `cpu`, one per instruction set, called through ctypes."""

import ctypes
import os
import warnings
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

from convpool.cpu.kernels import Choice
from convpool.geometry import Geometry
from convpool.layout import Strides
from convpool.torch_private import constant_when_compiled

_INSTRUCTION_SETS = {"avx512": "AVX512", "avx2": "AVX2"}  # by what torch calls them; best first


class Problem(ctypes.Structure):
    """Mirrors `Problem` in src/problem.h."""

    _fields_ = [
        (name, ctypes.c_int64 * count if count > 1 else ctypes.c_int64)
        for name, count in (
            ("batch", 1),
            ("groups", 1),
            ("in_channels", 1),
            ("out_channels", 1),
            ("size", 2),
            ("conv_size", 2),
            ("pooled_size", 2),
            ("kernel", 2),
            ("stride", 2),
            ("padding", 2),
            ("dilation", 2),
            ("pool_kernel", 2),
            ("pool_stride", 2),
            ("pool_padding", 2),
            ("pool_dilation", 2),
            ("x_stride", 4),
            ("w_stride", 4),
            ("y_stride", 4),
            ("dx_stride", 4),
            ("dw_stride", 4),
            ("threads", 1),
            ("chosen", 1),
        )
    ]


def problem_of(geometry: Geometry, choice: Choice, **strides: Strides) -> Problem:
    """Of the tensors named in `strides`; those of the others stay 0."""
    s = geometry.settings
    return Problem(
        batch=geometry.batch,
        groups=s.groups,
        in_channels=geometry.group_channels,
        out_channels=geometry.group_outputs,
        size=(geometry.height, geometry.width),
        conv_size=(geometry.conv_height, geometry.conv_width),
        pooled_size=(geometry.pooled_height, geometry.pooled_width),
        kernel=geometry.kernel,
        stride=s.stride,
        padding=(s.padding[0], s.padding[2]),
        dilation=s.dilation,
        pool_kernel=s.pool_kernel,
        pool_stride=s.pool_stride,
        pool_padding=s.pool_padding,
        pool_dilation=s.pool_dilation,
        threads=choice.threads,
        chosen=choice.kernel,
        **{f"{name}_stride": stride for name, stride in strides.items()},
    )


@cache
def library() -> Any:
    """The ctypes.CDLL for this processor, or a str: why there is none (and one warning if none was built)."""
    path = library_path()
    return path if isinstance(path, str) else _load(path)


@cache
def library_path() -> Path | str:
    """The file for this processor, or why there is none (and one warning if none was built)."""
    requested = os.environ.get("CONVPOOL_CPU_ISA", "")
    if requested and requested not in _INSTRUCTION_SETS:
        return f"CONVPOOL_CPU_ISA must be one of {', '.join(_INSTRUCTION_SETS)}, got {requested!r}"
    capability = torch.backends.cpu.get_cpu_capability()
    supported = [isa for isa, name in _INSTRUCTION_SETS.items() if _rank(capability) >= _rank(name)]
    if requested and requested not in supported:
        return f"CONVPOOL_CPU_ISA={requested}, but torch finds {capability} here"
    if not supported:
        return f"the processor has neither AVX-512 nor AVX2 (torch finds {capability})"
    for isa in [requested] if requested else supported:
        for suffix in EXTENSION_SUFFIXES:
            path = Path(__file__).with_name(f"_{isa}{suffix}")
            if path.exists():
                return path
    reason = "its libraries are not built (no C++ compiler at install time?)"
    warnings.warn(f"convpool: {reason}; torch's own layers serve CPU tensors", stacklevel=2)
    return reason


@constant_when_compiled
def lanes() -> int:
    """Floats in a vector of the library in use."""
    count: int = library().convpool_lanes()
    return count


def _rank(capability: str) -> int:
    return {"AVX512": 2, "AVX2": 1}.get(capability, 0)


def _load(path: Path) -> ctypes.CDLL | str:
    try:
        # Releases the GIL during calls; its GOMP_* symbols are those of torch's libgomp.
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path.name} does not load: {error}"
    library.convpool_problem_size.restype = ctypes.c_int64
    if library.convpool_problem_size() != ctypes.sizeof(Problem):
        return f"{path.name} is from another version; install the project again"
    for name, arguments in (("forward", 6), ("pool", 4), ("backward", 8), ("patch_moments", 4), ("lanes", 0)):
        function = getattr(library, f"convpool_{name}")
        function.argtypes = [ctypes.c_void_p] * arguments
        function.restype = ctypes.c_int64
    library.convpool_kernel_name.argtypes = [ctypes.c_int64]
    library.convpool_kernel_name.restype = ctypes.c_char_p
    return library
