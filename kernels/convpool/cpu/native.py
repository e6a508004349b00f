"""The backend `cpu`: vectorised C++ in one library per instruction set, called through ctypes."""

import ctypes
import os
import warnings
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convpool import eager
from convpool.geometry import MAX_WINDOW, Geometry
from convpool.layout import new_code, new_gradients, new_output
from convpool.protocol import Needs, Plan

_INSTRUCTION_SETS = {"avx512": "AVX512", "avx2": "AVX2"}  # by what torch calls them; best first
# More of them for each conv output: torch's convolution is no slower then, and its forms differ less by shape. Forward
# passes, ratio to the best plain form, split and fused: 4,165 products 0.99 and 0.80; 2,009: 1.01 and 0.80; 1,960: 0.97
# and 0.78; but 300: 0.94 and 0.86; 275: 1.09 and 1.22.
_FUSED_PRODUCTS = 1500
_NO_STRIDES = (0, 0, 0, 0)
_MAX_ELEMENTS = 2**31 - 1  # of one image: a winner's place in it is a 32-bit offset


class _Problem(ctypes.Structure):
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
            ("winograd", 1),
        )
    ]


class NativeBackend:
    name = "cpu"

    def unavailable(self) -> str | None:
        library = _library()
        return library if isinstance(library, str) else None

    def serves(self, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Plan | str:
        if device.type != "cpu":
            return f"the tensors are on {device}"
        if dtype != torch.float32:
            return f"dtype {dtype}: the kernels are written for float32"
        if geometry.window > MAX_WINDOW:
            return f"a pool window of {geometry.window} positions exceeds the {MAX_WINDOW} that one byte can name"
        padded = geometry.conv_height * geometry.settings.stride[0] + geometry.kernel[0] * geometry.settings.dilation[0]
        if geometry.in_channels * padded * geometry.width > _MAX_ELEMENTS // 16:
            return "one image has too many elements for 32-bit offsets"
        loss = _why_slow(geometry)
        if _takes_winograd(geometry):
            kernel = "winograd"
        elif geometry.reduction > _FUSED_PRODUCTS:
            reason = f"more than {_FUSED_PRODUCTS} products for each conv output: torch's convolution is best there"
            return Plan("cpu", "split", "torch's convolution, then pooling", loss or reason, profitable=not loss)
        else:
            kernel = "direct"
        reason = loss or "conv, ReLU and pool in one pass; gradients from the winners alone"
        return Plan("cpu", "fused", kernel, reason, profitable=not loss)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: Plan, with_code: bool
    ) -> tuple[Tensor, Tensor]:
        y = new_output(x, weight, geometry)
        code = new_code(y, with_code)
        if y.numel() == 0:
            return y, code
        problem = _problem(
            geometry,
            x.stride(),
            weight.stride(),
            y.stride(),
            _NO_STRIDES,
            _NO_STRIDES,
            torch.get_num_threads(),
            plan.kernel == "winograd",
        )
        winners = code.data_ptr() if with_code else None
        if plan.plan == "split":  # torch convolves best where channels are innermost, whatever format is asked for
            z = eager.conv(x.contiguous(memory_format=torch.channels_last), weight, bias, geometry.settings)
            z = z.contiguous(memory_format=torch.channels_last)
            _library().convpool_pool(problem.address, z.data_ptr(), y.data_ptr(), winners)
            return y, code
        if bias is not None:
            bias = bias.contiguous()
        _library().convpool_forward(
            problem.address,
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
            winners,
        )
        return y, code

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: Plan, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        dx, dw, db = new_gradients(code, weight, geometry, needs)
        if code.numel() == 0:
            return dx.zero_(), dw.zero_(), db.zero_()
        problem = _problem(
            geometry,
            _NO_STRIDES if x is None else x.stride(),
            weight.stride(),
            code.stride(),
            dx.stride() if needs[0] else _NO_STRIDES,
            dw.stride() if needs[1] else _NO_STRIDES,
            torch.get_num_threads(),
        )
        _library().convpool_backward(
            problem.address,
            x.data_ptr() if x is not None and needs[1] else None,
            weight.data_ptr(),
            dy.data_ptr(),
            code.data_ptr(),
            *(grad.data_ptr() if needed else None for grad, needed in zip((dx, dw, db), needs, strict=True)),
        )
        return dx, dw, db


def _takes_winograd(g: Geometry) -> bool:
    """What forward_winograd.h is written for, and enough input channels for the transforms to pay."""
    s = g.settings
    plain_pool = (s.pool_kernel, s.pool_stride, s.pool_padding, s.pool_dilation) == ((2, 2), (2, 2), (0, 0), (1, 1))
    fits = g.pooled_height * 2 <= g.conv_height and g.pooled_width * 2 <= g.conv_width
    unit = (g.kernel, s.stride, s.dilation) == ((3, 3), (1, 1), (1, 1))
    return plain_pool and fits and unit and g.group_channels >= 12


def _why_slow(g: Geometry) -> str:
    """In words why torch's own layers are no slower, or nothing. Ratios: forward and backward, to the best of those."""
    s = g.settings
    outputs = g.out_channels // s.groups
    # Both counted, not timed: lanes that do nothing, and positions that save nothing.
    if s.groups > 1 and outputs < 8:
        return f"{outputs} output channels a group leave most of a vector's lanes idle"
    if 2 * g.pooled_height * g.pooled_width > g.conv_height * g.conv_width:
        return "with more than one window for two conv outputs, the winners save no arithmetic"
    return ""


class _Prepared:
    """A filled `_Problem`, read by the library and changed by nobody, so that calls and threads can share it."""

    def __init__(self, problem: _Problem) -> None:
        self.problem = problem
        self.address = ctypes.addressof(problem)


@lru_cache(4096)
def _problem(
    geometry: Geometry,
    x_stride: tuple[int, ...],
    w_stride: tuple[int, ...],
    y_stride: tuple[int, ...],
    dx_stride: tuple[int, ...],
    dw_stride: tuple[int, ...],
    threads: int,
    winograd: bool = False,
) -> _Prepared:
    s = geometry.settings
    return _Prepared(
        _Problem(
            geometry.batch,
            s.groups,
            geometry.group_channels,
            geometry.out_channels // s.groups,
            (geometry.height, geometry.width),
            (geometry.conv_height, geometry.conv_width),
            (geometry.pooled_height, geometry.pooled_width),
            geometry.kernel,
            s.stride,
            (s.padding[0], s.padding[2]),
            s.dilation,
            s.pool_kernel,
            s.pool_stride,
            s.pool_padding,
            s.pool_dilation,
            x_stride,
            w_stride,
            y_stride,
            dx_stride,
            dw_stride,
            threads,
            winograd,
        )
    )


@cache
def _library() -> Any:
    """The ctypes.CDLL for this processor, or a str: why there is none (and one warning if none was built)."""
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
                return _load(path)
    reason = "its libraries are not built (no C++ compiler at install time?)"
    warnings.warn(f"convpool: {reason}; torch's own layers serve CPU tensors", stacklevel=2)
    return reason


def _rank(capability: str) -> int:
    return {"AVX512": 2, "AVX2": 1}.get(capability, 0)


def _load(path: Path) -> ctypes.CDLL | str:
    try:
        library = ctypes.CDLL(
            str(path)
        )  # releases the GIL during calls; its GOMP_* symbols are those of torch's libgomp
    except OSError as error:
        return f"{path.name} does not load: {error}"
    library.convpool_problem_size.restype = ctypes.c_int64
    if library.convpool_problem_size() != ctypes.sizeof(_Problem):
        return f"{path.name} is from another version; install the project again"
    for function, arguments in (
        (library.convpool_forward, 6),
        (library.convpool_pool, 4),
        (library.convpool_backward, 8),
    ):
        function.argtypes = [ctypes.c_void_p] * arguments
        function.restype = None
    return library


BACKEND = NativeBackend()
