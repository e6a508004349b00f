"""The op as two operators that torch knows, as `convpool.operators`; the buffers are updated outside of them."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convpool import operators, registry
from convpool.batchnorm import fold
from convpool.checks import check_memory
from convpool.geometry import Geometry, Settings
from convpool.layout import new_code, new_gradients, new_output

Needs: TypeAlias = tuple[bool, bool, bool, bool]  # which of dx, dw, dgamma, dbeta are asked for

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)

_library = torch.library.Library("convpool", "FRAGMENT")
_library.define(  # returns y, code, and the fields of `fold.Statistics`
    "conv_bn_relu_max_pool2d(Tensor x, Tensor weight, Tensor? gamma, Tensor? beta, float eps, SymInt[] settings, "
    "str backend, bool with_code) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(
    "conv_bn_relu_max_pool2d_backward(Tensor dy, Tensor code, Tensor x, Tensor weight, Tensor? gamma, Tensor mean, "
    "Tensor variance, Tensor patch_mean, Tensor projection, float eps, SymInt[] settings, str backend, bool[4] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
forward = torch.ops.convpool.conv_bn_relu_max_pool2d.default
backward = torch.ops.convpool.conv_bn_relu_max_pool2d_backward.default


@torch.library.impl(_library, "conv_bn_relu_max_pool2d", "CompositeExplicitAutograd")
def _run_forward(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    packed: Sequence[int],
    call: str,
    with_code: bool,
) -> tuple[Tensor, ...]:
    g = Geometry.of(x.shape, weight.shape, Settings.unpack(packed))
    backend: Any = registry.running(call)[0]
    check_memory(x=x, weight=weight)
    with operators.without_autocast(weight):
        found = fold.statistics(weight, backend.patch_moments(x, g), fold.positions(g))
        folded = fold.folded_weight(weight, fold.scale(found.variance, gamma, eps).scale)
        bias = fold.folded_bias(folded, beta, found.patch_mean)
        return *operators.compute_forward(x, folded, bias, g, call, with_code), *found


@torch.library.impl(_library, "conv_bn_relu_max_pool2d_backward", "CompositeExplicitAutograd")
def _run_backward(
    dy: Tensor,
    code: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    patch_mean: Tensor,
    projection: Tensor,
    eps: float,
    packed: Sequence[int],
    call: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g, found = (
        Geometry.of(x.shape, weight.shape, Settings.unpack(packed)),
        fold.Statistics(mean, variance, patch_mean, projection),
    )
    with operators.without_autocast(weight):
        factor = fold.scale(variance, gamma, eps)
        folded = fold.folded_weight(weight, factor.scale)
        sparse = operators.compute_backward(dy, code, x, folded, g, call, (needs[0], any(needs[:3]), True))
        dx, dw, dgamma, dbeta = _results(code, weight, gamma, g, needs)
        if any(needs[:3]):
            grads = fold.gradients(sparse[1], sparse[2], weight, found, factor, fold.positions(g))
            if needs[0]:
                dense = fold.dense_input_grad(x, weight, grads.slope, grads.offset, g)
                torch.sub(sparse[0], dense, out=dx)
            if needs[1]:
                dw.copy_(grads.weight.view(weight.shape))
            if needs[2]:
                dgamma.copy_(grads.gamma)
        if needs[3]:
            dbeta.copy_(sparse[2])
        return dx, dw, dgamma, dbeta


@torch.library.register_fake("convpool::conv_bn_relu_max_pool2d", lib=_library)
def _fake_forward(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    packed: Sequence[int],
    call: str,
    with_code: bool,
) -> tuple[Tensor, ...]:
    g = Geometry.of(x.shape, weight.shape, Settings.unpack(packed))
    y = new_output(x, torch.empty_like(weight), g)
    sizes = (g.out_channels,), (g.out_channels,), (g.settings.groups, g.reduction), (g.out_channels, g.reduction)
    return y, new_code(y, with_code), *(x.new_empty(size, dtype=fold.WIDE) for size in sizes)


@torch.library.register_fake("convpool::conv_bn_relu_max_pool2d_backward", lib=_library)
def _fake_backward(
    dy: Tensor,
    code: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    patch_mean: Tensor,
    projection: Tensor,
    eps: float,
    packed: Sequence[int],
    call: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _results(code, weight, gamma, Geometry.of(x.shape, weight.shape, Settings.unpack(packed)), needs)


def _results(
    code: Tensor, weight: Tensor, gamma: Tensor | None, g: Geometry, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised dx, dw, dgamma and dbeta; without elements where not needed."""
    dx, dw, _ = new_gradients(code, weight, g, (needs[0], needs[1], False))
    like = weight if gamma is None else gamma  # gamma and beta come together, and may be wider than weight
    dgamma, dbeta = (like.new_empty(g.out_channels if needed else 0) for needed in needs[2:])
    return dx, dw, dgamma, dbeta


@register_flop_formula(torch.ops.convpool.conv_bn_relu_max_pool2d)
def _forward_flops(
    x_shape: torch.Size,
    weight_shape: torch.Size,
    gamma_shape: Any,
    beta_shape: Any,
    eps: float,
    packed: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """As torch counts its conv2d; it counts none of a norm's."""
    return operators.conv_flops(Geometry.of(x_shape, weight_shape, Settings.unpack(packed)))


@register_flop_formula(torch.ops.convpool.conv_bn_relu_max_pool2d_backward)
def _backward_flops(
    dy_shape: torch.Size,
    code_shape: torch.Size,
    x_shape: torch.Size,
    weight_shape: torch.Size,
    *rest: Any,
    **_: Any,
) -> int:
    packed, needs = rest[6], rest[8]
    return operators.conv_flops(Geometry.of(x_shape, weight_shape, Settings.unpack(packed))) * (needs[0] + needs[1])
