"""The op as torch sees it: two registered operators, and the autograd Functions over them.

To torch.compile and torch.export the operators are opaque: fake kernels, batching rules and FLOP formulas describe
them. They have no autograd kernel: differentiation is the Functions' business, so that `torch.func` and higher orders
work.
"""

import inspect
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter
from torch.utils.flop_counter import register_flop_formula  # 0.15 s of import; but unregistered operators count 0

from convpool import planning
from convpool.geometry import DEAD, Geometry, Settings
from convpool.layout import has_channels_last_strides, new_code, new_gradients, new_output
from convpool.protocol import Needs, Plan
from convpool.torch_ops import winner_values

Size: TypeAlias = Sequence[int]  # height and width of x

_PLAIN_TYPES = {Tensor, Parameter}
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)

_library = torch.library.Library("convpool", "DEF")
_library.define(  # settings: Settings.pack(); backend: a name, never "auto"
    "conv_relu_max_pool2d(Tensor x, Tensor weight, Tensor? bias, SymInt[] settings, str backend, bool with_code) "
    "-> (Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(
    "conv_relu_max_pool2d_backward(Tensor dy, Tensor code, Tensor? x, Tensor weight, SymInt[2] size, "
    "SymInt[] settings, str backend, bool[3] needs) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
_forward = torch.ops.convpool.conv_relu_max_pool2d.default
_backward = torch.ops.convpool.conv_relu_max_pool2d_backward.default


def apply(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: Plan, unseen: bool) -> Tensor:
    """y of a checked, batched call; winners are kept only where a gradient can be asked for. `unseen`: by `unseen`."""
    needed = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    differentiable = needed and torch.is_grad_enabled()
    if unseen:
        if differentiable:
            return EagerConvReLUMaxPool2d.apply(x, weight, bias, geometry, plan)
        return _compute_forward(x, weight, bias, geometry, plan, False)[0]
    if differentiable:
        return ConvReLUMaxPool2dFunction.apply(x, weight, bias, geometry.settings, plan.backend)[0]
    return _forward(x, weight, bias, geometry.settings.pack(), plan.backend, False)[0]


def unseen(*tensors: Tensor) -> bool:
    """Whether nothing has to see the operators: no compiler, no `torch.func`, no dispatch mode, no tensor subclass."""
    if not _PLAIN_TYPES.issuperset(map(type, tensors)):
        return False
    # What torch.jit.is_tracing and is_in_torch_dispatch_mode come to, without a Python function each.
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
    )


class ConvReLUMaxPool2dFunction(Function):
    """`apply(x, weight, bias, settings, backend) -> (y, code)`; see `functional.conv_relu_max_pool2d` for the shapes.

    Keeps weight, code and, if weight needs a gradient, x.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, backend: str
    ) -> tuple[Tensor, Tensor]:
        return _forward(x, weight, bias, settings.pack(), backend, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, ctx.settings, ctx.backend = inputs
        ctx.size = x.shape[2], x.shape[3]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        needs = tuple(ctx.needs_input_grad[:3])
        if dy is None or not any(needs):
            return None, None, None, None, None
        x, weight, code = ctx.saved_tensors
        return *_gradients(dy, code, x, weight, ctx.size, ctx.settings, ctx.backend, needs), None, None


class EagerConvReLUMaxPool2d(Function):
    """ConvReLUMaxPool2dFunction for calls that nothing but autograd sees: `apply(...) -> y`.

    Without the dispatcher and `torch.func`'s conventions a forward and backward spend 143 us in Python instead of 247
    (torch's three layers: 91), and several times that in training, where the kernels evict Python's own code from the
    caches.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: Plan) -> Tensor:
        y, code = _compute_forward(x, weight, bias, geometry, plan, True)
        ctx.geometry, ctx.plan = geometry, plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, code)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None, None, None
        needs = ctx.needs_input_grad[:3]
        x, weight, code = ctx.saved_tensors
        g: Geometry = ctx.geometry
        if torch.is_grad_enabled() or not unseen(dy):
            size = g.height, g.width
            grads = _gradients(dy, code, x, weight, size, g.settings, ctx.plan.backend, needs)
        else:
            grads = _needed(_compute_backward(dy, code, x, weight, g, ctx.plan, needs), needs)
        return *grads, None, None


class ConvReLUMaxPool2dBackward(Function):
    """dx, dw and db for fixed winners: linear in dy, so that a second derivative is made of the same pieces."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        dy: Tensor,
        code: Tensor,
        x: Tensor | None,
        weight: Tensor,
        size: Size,
        settings: Settings,
        backend: str,
        needs: Needs,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _backward(dy, code, x, weight, size, settings.pack(), backend, needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        dy, code, x, weight, ctx.size, ctx.settings, ctx.backend, ctx.needs = inputs
        ctx.mark_non_differentiable(*(t for t, needed in zip(output, ctx.needs, strict=True) if not needed))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, code, x, weight)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor | None, ddw: Tensor | None, ddb: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, code, x, weight = ctx.saved_tensors
        geometry = _geometry(code, weight, ctx.size, ctx.settings)
        fixed = ctx.size, ctx.settings, ctx.backend
        grad_dy = grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            terms = []
            if ddx is not None:
                terms.append(winner_values(ddx, weight, ddb, code, geometry))
            if ddw is not None:
                terms.append(winner_values(x, ddw, None if ddx is not None else ddb, code, geometry))
            if ddb is not None and not terms:
                terms.append(torch.where(code == DEAD, 0, ddb[:, None, None]))
            grad_dy = sum(terms[1:], start=terms[0]) if terms else None
        if ctx.needs_input_grad[2] and ddw is not None:
            grad_x = ConvReLUMaxPool2dBackward.apply(dy, code, None, ddw, *fixed, (True, False, False))[0]
        if ctx.needs_input_grad[3] and ddx is not None:
            grad_weight = ConvReLUMaxPool2dBackward.apply(dy, code, ddx, weight, *fixed, (False, True, False))[1]
        return grad_dy, None, grad_x, grad_weight, None, None, None, None


# torch asks for forward's signature at each apply; building it anew took 40 of a step's 290 microseconds of overhead.
for _function in (ConvReLUMaxPool2dFunction, ConvReLUMaxPool2dBackward):
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore[union-attr]


def _gradients(
    dy: Tensor,
    code: Tensor,
    x: Tensor | None,
    weight: Tensor,
    size: Size,
    settings: Settings,
    backend: str,
    needs: Needs,
) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # create_graph
        grads = ConvReLUMaxPool2dBackward.apply(dy, code, x, weight, size, settings, backend, needs)
    else:
        grads = _backward(dy, code, x, weight, size, settings.pack(), backend, needs)
    return _needed(grads, needs)


def _needed(grads: tuple[Tensor, Tensor, Tensor], needs: Needs) -> tuple[Tensor | None, ...]:
    dx, dw, db = grads
    return dx if needs[0] else None, dw if needs[1] else None, db if needs[2] else None


def _geometry(code: Tensor, weight: Tensor, size: Size, settings: Settings) -> Geometry:
    return Geometry.of(_x_shape(code, weight, size, settings), weight.shape, settings)


def _x_shape(code: Tensor, weight: Tensor, size: Size, settings: Settings) -> tuple[int, ...]:
    return code.shape[0], weight.shape[1] * settings.groups, *size


def _compute_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: Plan, with_code: bool
) -> tuple[Tensor, Tensor]:
    device_type = weight.device.type
    if torch.is_autocast_enabled(device_type):
        with torch.autocast(device_type, enabled=False):  # the arguments already have the type to compute in
            return _compute_forward(x, weight, bias, geometry, plan, with_code)
    return planning.backend(plan.backend).forward(x, weight, bias, geometry, plan, with_code)


def _compute_backward(
    dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: Plan, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    device_type = weight.device.type
    if torch.is_autocast_enabled(device_type):
        with torch.autocast(device_type, enabled=False):
            return _compute_backward(dy, code, x, weight, geometry, plan, needs)
    if dy.stride() != code.stride():
        layout = torch.channels_last if has_channels_last_strides(code) else torch.contiguous_format
        dy = dy.contiguous(memory_format=layout)
    return planning.backend(plan.backend).backward(dy, code, x, weight, geometry, plan, needs)


@torch.library.impl(_library, "conv_relu_max_pool2d", "CompositeExplicitAutograd")
def _run_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Sequence[int], backend: str, with_code: bool
) -> tuple[Tensor, Tensor]:
    settings = Settings.unpack(packed)
    geometry, plan = planning.choose(x.shape, weight.shape, settings, x.dtype, x.device, backend)
    return _compute_forward(x, weight, bias, geometry, plan, with_code)


@torch.library.impl(_library, "conv_relu_max_pool2d_backward", "CompositeExplicitAutograd")
def _run_backward(
    dy: Tensor,
    code: Tensor,
    x: Tensor | None,
    weight: Tensor,
    size: list[int],
    packed: Sequence[int],
    backend: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    settings = Settings.unpack(packed)
    x_shape = _x_shape(code, weight, size, settings)
    geometry, plan = planning.choose(x_shape, weight.shape, settings, weight.dtype, weight.device, backend)
    return _compute_backward(dy, code, x, weight, geometry, plan, _three(needs))


@torch.library.register_fake("convpool::conv_relu_max_pool2d", lib=_library)
def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Sequence[int], backend: str, with_code: bool
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
    backend: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return new_gradients(code, weight, _geometry(code, weight, size, Settings.unpack(packed)), _three(needs))


@torch.library.register_vmap("convpool::conv_relu_max_pool2d", lib=_library)
def _batch_forward(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    packed: Sequence[int],
    backend: str,
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
    y, code = _forward(x, weight, bias, packed, backend, with_code)
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
    backend: str,
    needs: list[bool],
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    mapped = info.batch_size
    dy, code = _fold(dy, in_dims[0], 1, mapped), _fold(code, in_dims[1], 1, mapped)
    x = None if x is None else _fold(x, in_dims[2], 1, mapped)
    weight = _fold(weight, in_dims[3], 0, mapped)
    grads = _backward(dy, code, x, weight, size, _with_groups_times(packed, mapped), backend, needs)
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
    return _conv_flops(Geometry.of(x_shape, weight_shape, Settings.unpack(packed)))


@register_flop_formula(torch.ops.convpool.conv_relu_max_pool2d_backward)
def _backward_flops(
    dy_shape: torch.Size,
    code_shape: torch.Size,
    x_shape: Any,
    weight_shape: torch.Size,
    size: list[int],
    packed: Sequence[int],
    backend: str,
    needs: list[bool],
    **_: Any,
) -> int:
    settings = Settings.unpack(packed)
    geometry = Geometry.of((dy_shape[0], weight_shape[1] * settings.groups, *size), weight_shape, settings)
    return _conv_flops(geometry) * (needs[0] + needs[1])


def _conv_flops(g: Geometry) -> int:
    return 2 * g.batch * g.out_channels * g.conv_height * g.conv_width * g.reduction
