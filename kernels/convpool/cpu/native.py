"""The backend `cpu`: vectorised C++ in one library per instruction set, called through ctypes."""

import ctypes
import os
import warnings
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from convpool import eager
from convpool.geometry import Geometry
from convpool.layout import new_code, new_gradients, new_output
from convpool.protocol import BAD_CODES, Needs, Plan

Strides: TypeAlias = tuple[int, ...]

_INSTRUCTION_SETS = {"avx512": "AVX512", "avx2": "AVX2"}  # by what torch calls them; best first
# Products for each conv output above which torch's convolution is no slower, and differs less by shape. Forward
# passes, ratio to the best plain form, split and fused: 4,165 products 0.99 and 0.80; 2,009: 1.01 and 0.80; 1,960: 0.97
# and 0.78; but 300: 0.94 and 0.86; 275: 1.09 and 1.22.
_FUSED_PRODUCTS = 1500
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
        winograd = plan.kernel == "winograd"
        if winograd and not (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)):
            weight = weight.contiguous()  # the kernel turns all that lies between a channel's first and last weight
        call = _forward_call(geometry, x.stride(), weight.stride(), winograd, torch.get_num_threads())
        y = x.new_empty_strided(*call.results[0])
        code = x.new_empty_strided(*call.results[1], dtype=torch.uint8) if with_code else new_code(y, False)
        if call.empty:
            return y, code
        winners = code.data_ptr() if with_code else None
        if plan.plan == "split":  # torch convolves best where channels are innermost, whatever format is asked for
            z = eager.conv(x.contiguous(memory_format=torch.channels_last), weight, bias, geometry.settings)
            z = z.contiguous(memory_format=torch.channels_last)
            _library().convpool_pool(call.problem, z.data_ptr(), y.data_ptr(), winners)
            return y, code
        if bias is not None:
            bias = bias.contiguous()
        _library().convpool_forward(
            call.problem,
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
        x_stride = None if x is None else x.stride()
        call = _backward_call(geometry, x_stride, weight.stride(), code.stride(), needs, torch.get_num_threads())
        dx, dw, db = (weight.new_empty_strided(*layout) for layout in call.results)
        if call.empty:
            return dx.zero_(), dw.zero_(), db.zero_()
        right = _library().convpool_backward(
            call.problem,
            x.data_ptr() if x is not None and needs[1] else None,
            weight.data_ptr(),
            dy.data_ptr(),
            code.data_ptr(),
            dx.data_ptr() if needs[0] else None,
            dw.data_ptr() if needs[1] else None,
            db.data_ptr() if needs[2] else None,
        )
        if not right:
            raise RuntimeError(BAD_CODES)
        return dx, dw, db


def _takes_winograd(g: Geometry) -> bool:
    """What forward_winograd.h is written for, and enough input channels for the transforms to pay."""
    s = g.settings
    plain_pool = (s.pool_kernel, s.pool_stride, s.pool_padding, s.pool_dilation) == ((2, 2), (2, 2), (0, 0), (1, 1))
    fits = g.pooled_height * 2 <= g.conv_height and g.pooled_width * 2 <= g.conv_width
    unit = (g.kernel, s.stride, s.dilation) == ((3, 3), (1, 1), (1, 1))
    return plain_pool and fits and unit and g.group_channels >= 12


def _why_slow(g: Geometry) -> str:
    """In words why torch's own layers are no slower, or nothing."""
    s = g.settings
    outputs = g.out_channels // s.groups
    # Both counted, not timed: lanes that do nothing, and positions that save nothing.
    if s.groups > 1 and outputs < 8:
        return f"{outputs} output channels a group leave most of a vector's lanes idle"
    if 2 * g.pooled_height * g.pooled_width > g.conv_height * g.conv_width:
        return "with more than one window for two conv outputs, the winners save no arithmetic"
    return ""


class _Call:
    """What all calls of one geometry and one set of strides share; kept, because Python takes longer to work it out
    than a kernel does for a small layer.

    Attributes:
        problem: address of a filled `_Problem`, which the library reads and nobody changes, so that threads share it.
        results: sizes and strides of the tensors to return.
        empty: whether there is nothing to compute.
    """

    def __init__(self, problem: _Problem, results: Sequence[Tensor], empty: bool) -> None:
        self._problem = problem
        self.problem = ctypes.addressof(problem)
        self.results = [(tuple(t.shape), t.stride()) for t in results]
        self.empty = empty


@lru_cache(4096)
def _forward_call(geometry: Geometry, x_stride: Strides, w_stride: Strides, winograd: bool, threads: int) -> _Call:
    x = torch.empty_strided(geometry.x_shape, x_stride, device="meta")
    weight = torch.empty_strided(geometry.weight_shape, w_stride, device="meta")
    y = new_output(x, weight, geometry)
    problem = _problem(geometry, threads, x=x_stride, w=w_stride, y=y.stride())
    problem.winograd = winograd
    return _Call(problem, (y, new_code(y, True)), y.numel() == 0)


@lru_cache(4096)
def _backward_call(
    geometry: Geometry, x_stride: Strides | None, w_stride: Strides, y_stride: Strides, needs: Needs, threads: int
) -> _Call:
    code = torch.empty_strided(geometry.output_shape, y_stride, device="meta")
    weight = torch.empty_strided(geometry.weight_shape, w_stride, device="meta")
    dx, dw, db = new_gradients(code, weight, geometry, needs)
    strides = {"w": w_stride, "y": y_stride}
    if needs[0]:
        strides["dx"] = dx.stride()
    if needs[1]:
        assert x_stride is not None
        strides |= {"x": x_stride, "dw": dw.stride()}
    return _Call(_problem(geometry, threads, **strides), (dx, dw, db), code.numel() == 0)


def _problem(geometry: Geometry, threads: int, **strides: Strides) -> _Problem:
    """Of the tensors named in `strides`; those of the others stay 0."""
    s = geometry.settings
    return _Problem(
        batch=geometry.batch,
        groups=s.groups,
        in_channels=geometry.group_channels,
        out_channels=geometry.out_channels // s.groups,
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
        threads=threads,
        **{f"{name}_stride": stride for name, stride in strides.items()},
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
        # Releases the GIL during calls; its GOMP_* symbols are those of torch's libgomp.
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path.name} does not load: {error}"
    library.convpool_problem_size.restype = ctypes.c_int64
    if library.convpool_problem_size() != ctypes.sizeof(_Problem):
        return f"{path.name} is from another version; install the project again"
    for function, arguments, result in (
        (library.convpool_forward, 6, None),
        (library.convpool_pool, 4, None),
        (library.convpool_backward, 8, ctypes.c_int),
    ):
        function.argtypes = [ctypes.c_void_p] * arguments
        function.restype = result
    return library


BACKEND = NativeBackend()
