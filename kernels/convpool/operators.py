"""The op as two operators that torch knows: what computes them, and what torch.compile and torch.func ask of them.

To torch.compile and torch.export they are opaque: fake kernels, batching rules and FLOP formulas describe them. They
have no autograd kernel: differentiation is the business of `autograd`'s Functions.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula  # 0.15 s of import; but unregistered operators count 0

from convpool import registry
from convpool.checks import check_memory, check_saved
from convpool.geometry import Geometry, Settings
from convpool.layout import dense, has_channels_last_strides, new_code, new_gradients, new_output
from convpool.protocol import Needs
from convpool.torch_private import is_any_autocast_enabled

Size: TypeAlias = Sequence[int]  # height and width of x

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)

_library = torch.library.Library("convpool", "DEF")
_library.define(  # settings: Settings.pack(); backend: a Plan.call, as "cpu/fused": who planned the call
    "conv_relu_max_pool2d(Tensor x, Tensor weight, Tensor? bias, SymInt[] settings, str backend, bool with_code) "
    "-> (Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(
    "conv_relu_max_pool2d_backward(Tensor dy, Tensor code, Tensor? x, Tensor weight, SymInt[2] size, "
    "SymInt[] settings, str backend, bool[3] needs) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
forward = torch.ops.convpool.conv_relu_max_pool2d.default
backward = torch.ops.convpool.conv_relu_max_pool2d_backward.default


def geometry_of(code: Tensor, weight_shape: tuple[int, ...], size: Size, settings: Settings) -> Geometry:
    """Returns the geometry of a call whose x had this size, from what it left behind."""
    return Geometry.of(_x_shape(code, weight_shape, size, settings), weight_shape, settings)


def _x_shape(code: Tensor, weight_shape: tuple[int, ...], size: Size, settings: Settings) -> tuple[int, ...]:
    return code.shape[0], weight_shape[1] * settings.groups, *size


def compute_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, call: str, with_code: bool
) -> tuple[Tensor, Tensor]:
    """Returns y and the winners' codes by the call's backend; see `protocol.Backend.forward`."""
    check_memory(x=x, weight=weight, bias=bias)
    backend, plan = registry.running(call)
    with without_autocast(weight):
        return backend.forward(x, weight, bias, geometry, plan, with_code)


def compute_backward(
    dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, call: str, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx, dw and db by the call's backend, which gets dy in y's memory format.

    Raises:
        RuntimeError: a saved tensor is not the forward pass's any more.
    """
    check_saved(dy, code, x, weight, geometry)
    check_memory(x=x, weight=weight, code=code, dy=dy)
    code = dense(code)
    if dy.stride() != code.stride():
        layout = torch.channels_last if has_channels_last_strides(code) else torch.contiguous_format
        dy = dy.contiguous(memory_format=layout)
    backend, plan = registry.running(call)
    with without_autocast(weight):
        return backend.backward(dy, code, x, weight, geometry, plan, needs)


def without_autocast(t: Tensor) -> AbstractContextManager[object]:
    """Inside, autocast is off for t's device: the arguments already have the type to compute in."""
    return torch.autocast(t.device.type, enabled=False) if autocasts(t) else nullcontext()


def autocasts(t: Tensor) -> bool:
    """Whether autocast is on for t's device.

    The first question is the cheap one: where a kernel has emptied the caches, `device.type`, a string made anew, takes
    30 us, and torch's lookup by that string 20.
    """
    if not is_any_autocast_enabled():
        return False
    device_type = t.device.type
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


_has_autocast = cache(torch.amp.is_autocast_available)


@torch.library.impl(_library, "conv_relu_max_pool2d", "CompositeExplicitAutograd")
def _run_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Sequence[int], call: str, with_code: bool
) -> tuple[Tensor, Tensor]:
    return compute_forward(x, weight, bias, _geometry(x.shape, weight.shape, tuple(packed)), call, with_code)


@torch.library.impl(_library, "conv_relu_max_pool2d_backward", "CompositeExplicitAutograd")
def _run_backward(
    dy: Tensor,
    code: Tensor,
    x: Tensor | None,
    weight: Tensor,
    size: list[int],
    packed: Sequence[int],
    call: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    x_shape = _x_shape(code, weight.shape, size, Settings.unpack(packed))
    return compute_backward(dy, code, x, weight, _geometry(x_shape, weight.shape, tuple(packed)), call, _three(needs))


@lru_cache(4096)
def _geometry(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], packed: tuple[int, ...]) -> Geometry:
    """As `Geometry.of`; kept, for a compiled model asks for the same one at each step."""
    return Geometry.of(x_shape, weight_shape, Settings.unpack(packed))


@torch.library.register_fake("convpool::conv_relu_max_pool2d", lib=_library)
def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Sequence[int], call: str, with_code: bool
) -> tuple[Tensor, Tensor]:
    y = new_output(x, weight, Geometry.of(x.shape, weight.shape, Settings.unpack(packed)))
    return y, new_code(y, with_code)


@torch.library.register_fake("convpool::conv_relu_max_pool2d_backward", lib=_library)
def _fake_backward(
    dy: Tensor,
    code: Tensor,
    x: Tensor | None,
    weight: Tensor,
    size: list[int],
    packed: Sequence[int],
    call: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return new_gradients(code, weight, geometry_of(code, weight.shape, size, Settings.unpack(packed)), _three(needs))


@torch.library.register_vmap("convpool::conv_relu_max_pool2d", lib=_library)
def _batch_forward(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    packed: Sequence[int],
    call: str,
    with_code: bool,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
    size = info.batch_size
    if in_dims[1] is None and in_dims[2] is None:  # one weight for all: more images
        axis = 0
        x = _fold(x, in_dims[0], 0, size)
    else:  # a weight for each: more groups
        axis = 1
        x, weight = _fold(x, in_dims[0], 1, size), _fold(weight, in_dims[1], 0, size)
        bias = None if bias is None else _fold(bias, in_dims[2], 0, size)
        packed = _with_groups_times(packed, size)
    y, code = forward(x, weight, bias, packed, call, with_code)
    y = y.unflatten(axis, (size, -1))
    return (y, code.unflatten(axis, (size, -1))) if with_code else (y, code), (axis, axis if with_code else None)


@torch.library.register_vmap("convpool::conv_relu_max_pool2d_backward", lib=_library)
def _batch_backward(
    info: Any,
    in_dims: tuple[Any, ...],
    dy: Tensor,
    code: Tensor,
    x: Tensor | None,
    weight: Tensor,
    size: list[int],
    packed: Sequence[int],
    call: str,
    needs: list[bool],
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    mapped = info.batch_size
    dy, code = _fold(dy, in_dims[0], 1, mapped), _fold(code, in_dims[1], 1, mapped)
    x = None if x is None else _fold(x, in_dims[2], 1, mapped)
    weight = _fold(weight, in_dims[3], 0, mapped)
    grads = backward(dy, code, x, weight, size, _with_groups_times(packed, mapped), call, needs)
    axes = [axis if needed else None for axis, needed in zip((1, 0, 0), needs, strict=True)]
    split = (g if axis is None else g.unflatten(axis, (mapped, -1)) for g, axis in zip(grads, axes, strict=True))
    return tuple(split), tuple(axes)


def _fold(t: Tensor, mapped: int | None, axis: int, size: int) -> Tensor:
    """Merge the mapped dimension of t (or as many copies of t) into `axis`."""
    t = t.expand(size, *t.shape) if mapped is None else t.movedim(mapped, 0)
    return t.movedim(0, axis).flatten(axis, axis + 1)


def _with_groups_times(packed: Sequence[int], factor: int) -> tuple[int, ...]:
    settings = Settings.unpack(packed)
    return settings._replace(groups=settings.groups * factor).pack()


def _three(needs: list[bool]) -> Needs:
    dx, dw, db = needs
    return dx, dw, db


@register_flop_formula(torch.ops.convpool.conv_relu_max_pool2d)
def _forward_flops(
    x_shape: torch.Size, weight_shape: torch.Size, bias_shape: Any, packed: Sequence[int], *_: Any, **__: Any
) -> int:
    """As torch counts its conv2d: two for each product of the full conv output, whatever a kernel leaves out."""
    return conv_flops(Geometry.of(x_shape, weight_shape, Settings.unpack(packed)))


@register_flop_formula(torch.ops.convpool.conv_relu_max_pool2d_backward)
def _backward_flops(
    dy_shape: torch.Size,
    code_shape: torch.Size,
    x_shape: Any,
    weight_shape: torch.Size,
    size: list[int],
    packed: Sequence[int],
    call: str,
    needs: list[bool],
    **_: Any,
) -> int:
    settings = Settings.unpack(packed)
    geometry = Geometry.of((dy_shape[0], weight_shape[1] * settings.groups, *size), weight_shape, settings)
    return conv_flops(geometry) * (needs[0] + needs[1])


def conv_flops(g: Geometry) -> int:
    return 2 * g.batch * g.out_channels * g.conv_height * g.conv_width * g.reduction
