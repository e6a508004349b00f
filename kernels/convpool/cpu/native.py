"""The backend `cpu`: what it serves, and calls of its vectorised C++."""

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from convpool import eager
from convpool.cpu.kernels import (
    MOST_PATCH_VALUES,
    Choice,
    Kernel,
    backward_kernel,
    convolves_innermost,
    forward_kernel,
    is_split,
    why_moments_lose,
    why_slower,
)
from convpool.cpu.library import Problem, lanes, library, problem_of
from convpool.geometry import Geometry
from convpool.layout import Layout, Strides, gradient_layouts, new_code, output_layout
from convpool.protocol import BAD_CODES, ORDINARY, Bound, Moments, Needs, Plan, Use, check_word

_MAX_ELEMENTS = 2**31 - 1  # of one image: a winner's place in it is a 32-bit offset


class NativeBackend:
    def unavailable(self) -> str | None:
        found = library()
        return found if isinstance(found, str) else None

    def serves(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use = ORDINARY) -> Plan | str:
        if device.type != "cpu":
            return f"the tensors are on {device}"
        if dtype != torch.float32:
            return f"dtype {dtype}: the kernels are written for float32"
        if _too_large(geometry):
            return _TOO_LARGE
        split = is_split(geometry, use, lanes())
        reason = _SPLIT if split else _FUSED
        loss = why_slower(geometry, use, lanes())
        return Plan("cpu", "split" if split else "fused", loss or reason, profitable=not loss)

    def plans(self, geometry: Geometry, dtype: torch.dtype) -> tuple[str, ...]:
        return ("fused", "split")

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
        loss = why_moments_lose(geometry, dx, lanes())
        return replace(plan, reason=loss or _FUSED, profitable=not loss)

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
        if self._plan == "split":
            if call.innermost:
                x = x.contiguous(memory_format=torch.channels_last)
            z = eager.conv(x, weight, bias, self._settings)
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


_FUSED = "conv, ReLU and pool in one pass; gradients from the winners alone"
_SPLIT = "torch's convolution is best for so many products; pool and gradients are ours"
_TOO_LARGE = "one image has too many elements for 32-bit offsets"


def _too_large(g: Geometry) -> bool:
    padded = g.conv_height * g.settings.stride[0] + g.kernel[0] * g.settings.dilation[0]
    return g.in_channels * padded * g.width > _MAX_ELEMENTS // 16


class _Call:
    """What all calls of one geometry and one set of strides share; kept, because Python takes longer to work it out
    than a kernel does for a small layer.

    Attributes:
        kernel: what computes it.
        problem: address of a filled `Problem`, which the library reads and nobody changes, so that threads share it.
        results: sizes and strides of the tensors to return.
        empty: whether there is nothing to compute.
        copies_weight: whether the weight must first be copied into contiguous memory.
        innermost: whether torch's convolution of the split plan gets x in channels_last, whatever its format.
    """

    def __init__(
        self,
        problem: Problem,
        results: Sequence[Layout],
        *,
        empty: bool,
        copies_weight: bool = False,
        innermost: bool = False,
    ) -> None:
        self._problem = problem
        self.kernel = Kernel(problem.chosen)
        self.problem = ctypes.addressof(problem)
        self.results = results
        self.empty = empty
        self.copies_weight = copies_weight
        self.innermost = innermost


@lru_cache(4096)
def _forward_call(geometry: Geometry, x_stride: Strides, w_stride: Strides, plan: str, threads: int) -> _Call:
    """Raises RuntimeError where the geometry is none that `serves` planned: a batch of weights makes it larger."""
    check_word(plan)
    if _too_large(geometry):
        raise RuntimeError(f"backend 'cpu' cannot serve this call: {_TOO_LARGE}")
    y = output_layout(geometry, x_stride, w_stride)
    choice = (
        Choice(Kernel.POOL, threads) if plan == "split" else forward_kernel(geometry, x_stride, y[1], threads, lanes())
    )
    # The transforms turn all that lies between a channel's first and last weight.
    weight = torch.empty_strided(geometry.weight_shape, w_stride, device="meta")
    dense = choice.kernel is not Kernel.FORWARD_WINOGRAD or _is_dense(weight)
    w_stride = w_stride if dense else weight.contiguous().stride()
    problem = problem_of(geometry, choice, x=x_stride, w=w_stride, y=y[1])
    empty = 0 in geometry.output_shape
    return _Call(problem, (y,), empty=empty, copies_weight=not dense, innermost=convolves_innermost(geometry))


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
    return _Call(problem_of(geometry, choice, **strides), results, empty=0 in geometry.output_shape)


@lru_cache(4096)
def _moments_call(geometry: Geometry, x_stride: Strides, threads: int) -> _Call:
    return _Call(problem_of(geometry, Choice(Kernel.PATCH_MOMENTS, threads), x=x_stride), (), empty=False)


def _is_dense(weight: Tensor) -> bool:
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


BACKEND = NativeBackend()
