"""The op's derivatives: an autograd Function over the operators; what they do not know is left to torch's layers."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from convpool.batchnorm import operators
from convpool.batchnorm.eager import bn_relu_max_pool
from convpool.geometry import Settings
from convpool.protocol import Plan
from convpool.torch_private import are_functorch_transforms_active, in_forward_mode

Update: TypeAlias = Callable[[Tensor, Tensor], None]  # takes the conv output's mean without bias and biased variance


def apply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    settings: Settings,
    plan: Plan,
    update: Update,
) -> Tensor:
    """y of a checked, batched call; `update` is called with the statistics before anything is kept for backward."""
    needed = any(t is not None and t.requires_grad for t in (x, weight, bias, gamma, beta))
    if needed and torch.is_grad_enabled():
        return ConvBNReLUMaxPool2dFunction.apply(x, weight, bias, gamma, beta, eps, settings, plan.call, update)
    y, _, mean, variance, *_ = operators.forward(x, weight, gamma, beta, eps, settings.pack(), plan.call, False)
    update(mean, variance)
    return y


class ConvBNReLUMaxPool2dFunction(Function):
    """`apply(x, weight, bias, gamma, beta, eps, settings, call, update) -> y`.

    Keeps x, weight, gamma, code, and of the statistics what has the size of weight or less. bias only takes part for
    its gradient, which is 0: the batch's mean takes it away. A checkpoint computes anew up to what is kept and no
    further: running statistics that moved later would not move twice, as those of torch's norm do.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
        settings: Settings,
        call: str,
        update: Update,
    ) -> Tensor:
        y, code, *found = operators.forward(x, weight, gamma, beta, eps, settings.pack(), call, True)
        update(found[0], found[1])
        ctx.save_for_backward(x, weight, bias, gamma, beta, code, *found)
        ctx.eps, ctx.settings, ctx.call = eps, settings, call
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 9
        x, weight, bias, gamma, beta, code, *found = ctx.saved_tensors
        needs = ctx.needs_input_grad[:5]
        asked = needs[0], needs[1], needs[3], needs[4]
        if any(asked) and _is_transformed(dy):
            dx, dw, dgamma, dbeta = _by_layers(dy, x, weight, gamma, beta, asked, ctx.settings, ctx.eps)
        else:
            packed = ctx.settings.pack()
            dx, dw, dgamma, dbeta = operators.backward(
                dy, code, x, weight, gamma, *found, ctx.eps, packed, ctx.call, asked
            )
        grads = dx, dw, torch.zeros_like(bias) if needs[2] else None, dgamma, dbeta
        return *(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), None, None, None, None


def _is_transformed(dy: Tensor) -> bool:
    """Whether the gradients are differentiated themselves (create_graph, forward mode), or dy is a batch of them."""
    return torch.is_grad_enabled() or in_forward_mode(dy) or are_functorch_transforms_active()


def _by_layers(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    needs: operators.Needs,
    settings: Settings,
    eps: float,
) -> list[Tensor | None]:
    """The gradients as functions of dy and the inputs: those of torch's layers, computed once more."""
    with torch.enable_grad():
        y = bn_relu_max_pool(x, weight, None, gamma, beta, settings, eps=eps)
    asked = [t for t, needed in zip((x, weight, gamma, beta), needs, strict=True) if needed and t is not None]
    found = iter(torch.autograd.grad(y, asked, dy, create_graph=torch.is_grad_enabled()))
    return [next(found) if needed else None for needed in needs]
