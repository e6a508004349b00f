"""The backend `cpu`: vectorised C++ in one library per instruction set, called through ctypes."""

import ctypes
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convpool import eager
from convpool.cpu.kernels import (
    FUSED_PRODUCTS,
    MOST_PATCH_VALUES,
    Choice,
    Kernel,
    backward_kernel,
    forward_kernel,
    is_split,
    why_moments_lose,
)
from convpool.geometry import Geometry
from convpool.layout import Layout, Strides, gradient_layouts, new_code, output_layout
from convpool.protocol import BAD_CODES, Bound, Moments, Needs, Plan, check_word
from convpool.torch_private import constant_when_compiled

_INSTRUCTION_SETS = {"avx512": "AVX512", "avx2": "AVX2"}  # by what torch calls them; best first
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
            ("chosen", 1),
        )
    ]


class NativeBackend:
    def unavailable(self) -> str | None:
        found = library()
        return found if isinstance(found, str) else None

    def serves(self, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Plan | str:
        if device.type != "cpu":
            return f"the tensors are on {device}"
        if dtype != torch.float32:
            return f"dtype {dtype}: the kernels are written for float32"
        if _too_large(geometry):
            return _TOO_LARGE
        loss = _why_slow(geometry)
        if is_split(geometry):
            products = f"more than {FUSED_PRODUCTS} products for each conv output"
            reason = f"{products}: torch's convolution is best there"
            return Plan("cpu", "split", loss or reason, profitable=not loss)
        reason = "conv, ReLU and pool in one pass; gradients from the winners alone"
        return Plan("cpu", "fused", loss or reason, profitable=not loss)

    def kernels(self, x: Tensor, weight: Tensor, geometry: Geometry, plan: str, needs: Needs) -> tuple[str, ...]:
        threads = torch.get_num_threads()
        forward = _forward_call(geometry, x.stride(), weight.stride(), plan, threads)
        if forward.empty:
            return ()
        names = ["torch's convolution"] if plan == "split" else []
        names.append(forward.kernel.name.lower())
        if any(needs):
            names.append(backward_kernel(geometry, needs).name.lower())
        return tuple(names)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str, with_code: bool
    ) -> tuple[Tensor, Tensor]:
        return _Calls(geometry, x.stride(), weight.stride(), plan).forward(x, weight, bias, with_code)

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: str, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_stride = () if x is None else x.stride()
        return _Calls(geometry, x_stride, weight.stride(), plan).backward(dy, code, x, weight, needs)

    def batch_statistics(self, geometry: Geometry, plan: Plan, dx: bool) -> Plan | str:
        if geometry.reduction > MOST_PATCH_VALUES:
            return f"patches of {geometry.reduction} values, more than {MOST_PATCH_VALUES}, have too many products"
        loss = why_moments_lose(geometry, dx, _lanes())
        return replace(plan, reason=loss or plan.reason, profitable=plan.profitable and not loss)

    def patch_moments(self, x: Tensor, geometry: Geometry) -> Moments:
        groups, reduction = geometry.settings.groups, geometry.reduction
        mean = x.new_empty(groups, reduction, dtype=torch.float64)
        scatter = x.new_empty(groups, reduction, reduction, dtype=torch.float64)
        call = _moments_call(geometry, x.stride(), torch.get_num_threads())
        library().convpool_patch_moments(call.problem, x.data_ptr(), mean.data_ptr(), scatter.data_ptr())
        return Moments(mean, scatter)

    def bind(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str) -> Bound:
        return _Calls(geometry, x.stride(), weight.stride(), plan)


class _Calls:
    """A plan for tensors of one geometry and these strides (`protocol.Bound`); x may have none if none is read."""

    def __init__(self, geometry: Geometry, x_stride: Strides, w_stride: Strides, plan: str) -> None:
        self._kind = geometry, x_stride, w_stride
        self._settings, self._plan = geometry.settings, plan
        self._forward: dict[int, _Call] = {}
        self._backward: dict[tuple[Needs, int], _Call] = {}

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, with_code: bool) -> tuple[Tensor, Tensor]:
        threads = torch.get_num_threads()
        call = self._forward.get(threads)
        if call is None:
            call = self._forward[threads] = _forward_call(*self._kind, self._plan, threads)
        y = x.new_empty_strided(*call.results[0])
        code = new_code(y, with_code)
        if call.empty:
            return y, code
        winners = code.data_ptr() if with_code else None
        if self._plan == "split":  # torch convolves best where channels are innermost, whatever format is asked for
            z = eager.conv(x.contiguous(memory_format=torch.channels_last), weight, bias, self._settings)
            z = z.contiguous(memory_format=torch.channels_last)
            library().convpool_pool(call.problem, z.data_ptr(), y.data_ptr(), winners)
            return y, code
        if call.copies_weight:
            weight = weight.contiguous()
        if bias is not None:
            bias = bias.contiguous()
        library().convpool_forward(
            call.problem,
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
            winners,
        )
        return y, code

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All backward passes of one object have dy and code of the same strides."""
        key = needs, torch.get_num_threads()
        call = self._backward.get(key)
        if call is None:
            call = self._backward[key] = _backward_call(*self._kind, code.stride(), *key)
        dx, dw, db = (weight.new_empty_strided(*layout) for layout in call.results)
        if call.empty:
            return dx.zero_(), dw.zero_(), db.zero_()
        kernel = library().convpool_backward(
            call.problem,
            x.data_ptr() if x is not None and needs[1] else None,
            weight.data_ptr(),
            dy.data_ptr(),
            code.data_ptr(),
            dx.data_ptr() if needs[0] else None,
            dw.data_ptr() if needs[1] else None,
            db.data_ptr() if needs[2] else None,
        )
        if kernel < 0:
            raise RuntimeError(BAD_CODES)
        return dx, dw, db


_TOO_LARGE = "one image has too many elements for 32-bit offsets"


def _too_large(g: Geometry) -> bool:
    padded = g.conv_height * g.settings.stride[0] + g.kernel[0] * g.settings.dilation[0]
    return g.in_channels * padded * g.width > _MAX_ELEMENTS // 16


def _why_slow(g: Geometry) -> str:
    """In words why torch's own layers are no slower, or nothing."""
    # Both counted, not timed: lanes that do nothing, and positions that save nothing.
    if g.settings.groups > 1 and g.group_outputs < 8:
        return f"{g.group_outputs} output channels a group leave most of a vector's lanes idle"
    if 2 * g.pooled_height * g.pooled_width > g.conv_height * g.conv_width:
        return "with more than one window for two conv outputs, the winners save no arithmetic"
    return ""


class _Call:
    """What all calls of one geometry and one set of strides share; kept, because Python takes longer to work it out
    than a kernel does for a small layer.

    Attributes:
        kernel: what computes it.
        problem: address of a filled `_Problem`, which the library reads and nobody changes, so that threads share it.
        results: sizes and strides of the tensors to return.
        empty: whether there is nothing to compute.
        copies_weight: whether the weight must first be copied into contiguous memory.
    """

    def __init__(
        self, problem: _Problem, results: Sequence[Layout], *, empty: bool, copies_weight: bool = False
    ) -> None:
        self._problem = problem
        self.kernel = Kernel(problem.chosen)
        self.problem = ctypes.addressof(problem)
        self.results = results
        self.empty = empty
        self.copies_weight = copies_weight


@lru_cache(4096)
def _forward_call(geometry: Geometry, x_stride: Strides, w_stride: Strides, plan: str, threads: int) -> _Call:
    """Raises RuntimeError where the geometry is none that `serves` planned: a batch of weights makes it larger."""
    check_word(plan)
    if _too_large(geometry):
        raise RuntimeError(f"backend 'cpu' cannot serve this call: {_TOO_LARGE}")
    y = output_layout(geometry, x_stride, w_stride)
    choice = (
        Choice(Kernel.POOL, threads) if plan == "split" else forward_kernel(geometry, x_stride, y[1], threads, _lanes())
    )
    # The transforms turn all that lies between a channel's first and last weight.
    weight = torch.empty_strided(geometry.weight_shape, w_stride, device="meta")
    dense = choice.kernel is not Kernel.FORWARD_WINOGRAD or _is_dense(weight)
    w_stride = w_stride if dense else weight.contiguous().stride()
    problem = _problem(geometry, choice, x=x_stride, w=w_stride, y=y[1])
    return _Call(problem, (y,), empty=0 in geometry.output_shape, copies_weight=not dense)


@lru_cache(4096)
def _backward_call(
    geometry: Geometry, x_stride: Strides, w_stride: Strides, y_stride: Strides, needs: Needs, threads: int
) -> _Call:
    results = gradient_layouts(geometry, w_stride, y_stride, needs)
    strides = {"w": w_stride, "y": y_stride}
    if needs[0]:
        strides["dx"] = results[0][1]
    if needs[1]:
        strides |= {"x": x_stride, "dw": results[1][1]}
    choice = Choice(backward_kernel(geometry, needs), threads)
    return _Call(_problem(geometry, choice, **strides), results, empty=0 in geometry.output_shape)


@lru_cache(4096)
def _moments_call(geometry: Geometry, x_stride: Strides, threads: int) -> _Call:
    return _Call(_problem(geometry, Choice(Kernel.PATCH_MOMENTS, threads), x=x_stride), (), empty=False)


def _is_dense(weight: Tensor) -> bool:
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


def _problem(geometry: Geometry, choice: Choice, **strides: Strides) -> _Problem:
    """Of the tensors named in `strides`; those of the others stay 0."""
    s = geometry.settings
    return _Problem(
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


@constant_when_compiled
def _lanes() -> int:
    """Floats in a vector of the library in use."""
    lanes: int = library().convpool_lanes()
    return lanes


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
    for name, arguments in (("forward", 6), ("pool", 4), ("backward", 8), ("patch_moments", 4), ("lanes", 0)):
        function = getattr(library, f"convpool_{name}")
        function.argtypes = [ctypes.c_void_p] * arguments
        function.restype = ctypes.c_int64
    library.convpool_kernel_name.argtypes = [ctypes.c_int64]
    library.convpool_kernel_name.restype = ctypes.c_char_p
    return library


BACKEND = NativeBackend()
