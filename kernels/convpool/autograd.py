"""The op's derivatives: autograd Functions over the operators, so that `torch.func` and higher orders work."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from convpool import operators, torch_ops
from convpool.checks import check_saved
from convpool.geometry import Geometry, Settings
from convpool.known import Call
from convpool.layout import dense
from convpool.operators import Size
from convpool.protocol import Needs, Plan
from convpool.torch_private import in_forward_mode, unseen


def apply(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: Plan) -> Tensor:
    """y of a checked, batched call; winners are kept only where a gradient can be asked for."""
    needed = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if needed and torch.is_grad_enabled():
        return ConvReLUMaxPool2dFunction.apply(x, weight, bias, geometry.settings, plan.call)[0]
    return operators.forward(x, weight, bias, geometry.settings.pack(), plan.call, False)[0]


def apply_unseen(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `apply`, for a call that nothing but autograd has to see (`torch_private.unseen`)."""
    if call.differentiable and torch.is_grad_enabled():
        return _apply_eagerly(x, weight, bias, call)
    return call.forward(x, weight, bias, False)[0]


class ConvReLUMaxPool2dFunction(Function):
    """`apply(x, weight, bias, settings, call) -> (y, code)`; see `functional.conv_relu_max_pool2d` for the shapes.

    `call` names who computes, forward and backward: `explain(...).call`, as "cpu/fused".
    Keeps weight, code and, if weight needs a gradient, x.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, call: str) -> tuple[Tensor, Tensor]:
        return operators.forward(x, weight, bias, settings.pack(), call, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, ctx.settings, ctx.call = inputs
        ctx.size, ctx.weight_shape = (x.shape[2], x.shape[3]), weight.shape
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        needs = tuple(ctx.needs_input_grad[:3])
        if dy is None or not any(needs):
            return None, None, None, None, None
        x, weight, code = ctx.saved_tensors
        geometry = operators.geometry_of(code, ctx.weight_shape, ctx.size, ctx.settings)
        check_saved(dy, code, x, weight, geometry)
        return *_gradients(dy, code, x, weight, ctx.size, ctx.settings, ctx.call, needs), None, None


class EagerConvReLUMaxPool2d(Function):
    """ConvReLUMaxPool2dFunction for calls that nothing but autograd sees: without the dispatcher and the conventions of
    `torch.func` they take half the time in Python, and a quarter where the kernels evict Python's own code from the
    caches."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: Call) -> Tensor:
        y, code = call.forward(x, weight, bias, True)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if weight.requires_grad else None, weight, code)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None, None
        call: Call = ctx.call
        x, weight, code = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or not call.repeats_backward(dy, code, x, weight):
            return *_gradients_anew(dy, code, x, weight, call, needs), None
        dx, dw, db = call.backward(dy, code, x, weight, needs)
        return dx if needs[0] else None, dw if needs[1] else None, db if needs[2] else None, None


# Without what Function.apply itself adds for `torch.func`.
_apply_eagerly = super(Function, EagerConvReLUMaxPool2d).apply


def _gradients_anew(
    dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, call: Call, needs: Needs
) -> tuple[Tensor | None, ...]:
    """The gradients of a backward pass about whose tensors nothing is known."""
    g = call.geometry
    check_saved(dy, code, x, weight, g)
    if torch.is_grad_enabled() or not unseen(dy):
        return _gradients(dy, code, x, weight, (g.height, g.width), g.settings, call.name, needs)
    grads = operators.compute_backward(dy, code, x, weight, g, call.name, needs)
    if dy.stride() == code.stride() and dense(code) is code and not operators.autocasts(weight):
        call.keep_backward(dy, code, x, weight)
    return _needed(grads, needs)


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
        call: str,
        needs: Needs,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return operators.backward(dy, code, x, weight, size, settings.pack(), call, needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        dy, code, x, weight, ctx.size, ctx.settings, ctx.call, ctx.needs = inputs
        ctx.weight_shape = weight.shape
        ctx.mark_non_differentiable(*(t for t, needed in zip(output, ctx.needs, strict=True) if not needed))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, code, x, weight)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor | None, ddw: Tensor | None, ddb: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, code, x, weight = ctx.saved_tensors
        geometry = operators.geometry_of(code, ctx.weight_shape, ctx.size, ctx.settings)
        check_saved(dy, code, x, weight, geometry)
        fixed = ctx.size, ctx.settings, ctx.call
        grad_dy = grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            terms = []
            if ddx is not None:
                terms.append(torch_ops.winner_values(ddx, weight, ddb, code, geometry))
            if ddw is not None:
                terms.append(torch_ops.winner_values(x, ddw, None if ddx is not None else ddb, code, geometry))
            if ddb is not None and not terms:
                terms.append(torch.where(torch_ops.winners(code, geometry).live, ddb[:, None, None], 0))
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
    call: str,
    needs: Needs,
) -> tuple[Tensor | None, ...]:
    if in_forward_mode(dy, x, weight):  # entered after the forward pass: torch's own operations carry dy's tangent
        geometry = operators.geometry_of(code, weight.shape, size, settings)
        grads = torch_ops.gradients(dy, code, x, weight, geometry, needs)
    elif torch.is_grad_enabled():  # create_graph
        grads = ConvReLUMaxPool2dBackward.apply(dy, code, x, weight, size, settings, call, needs)
    else:
        grads = operators.backward(dy, code, x, weight, size, settings.pack(), call, needs)
    return _needed(grads, needs)


def _needed(grads: tuple[Tensor, Tensor, Tensor], needs: Needs) -> tuple[Tensor | None, ...]:
    dx, dw, db = grads
    return dx if needs[0] else None, dw if needs[1] else None, db if needs[2] else None
