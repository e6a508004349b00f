"""The norm as part of the conv: a convolution's mean and variance follow from the moments of the patches it reads.

Per group, with P the patch at a conv position, w a channel's weight as a vector of the same K values, M positions in
all, mu the patches' mean and S their scatter, sum (P - mu)(P - mu)^T:

    mean  m = w . mu + b         variance  v = w . S w / M         r = (v + eps)^-1/2
    norm(conv(x)) = gamma r (w . P + b - m) + beta = w' . P + b'   with  w' = gamma r w,  b' = beta - w' . mu

so the conv's own bias b cancels. The gradients follow by the chain rule; with X, D and B those of the op for x, w' and
b', and h = S w, which the forward pass keeps (it has the size of w; S is larger):

    dbeta = B      dgamma = r (D . w - w . mu B)      k = r dgamma / M
    dw = gamma r (D - B mu - k h)
    dx = X - conv_transpose(gamma r (B / M + k (w . P - w . mu)), w)

All that has the size of w or less is float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from convpool import eager
from convpool.geometry import Geometry
from convpool.protocol import Moments

WIDE = torch.float64


class Statistics(NamedTuple):
    """What the forward pass finds out, and the backward pass reads; float64."""

    mean: Tensor  # (C_out,): of the conv output without its bias, w . mu
    variance: Tensor  # (C_out,): biased
    patch_mean: Tensor  # (groups, K): mu
    projection: Tensor  # (C_out, K): h


class Scale(NamedTuple):
    """Of each output channel (C_out,), float64: r, and gamma r."""

    reciprocal: Tensor
    scale: Tensor


def under_running_statistics(
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the conv that equals conv -> norm under running statistics, differentiable in all of them.

    norm(conv(x)) = (conv(x) - mean) * scale + beta with scale = gamma / sqrt(var + eps), formed in float32 at least.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = torch.rsqrt(running_var.to(dtype) + eps)
    if gamma is not None:
        scale = scale * gamma.to(dtype)
    shift = ((0 if bias is None else bias.to(dtype)) - running_mean.to(dtype)) * scale
    if beta is not None:
        shift = shift + beta.to(dtype)
    return (weight.to(dtype) * scale[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)


def positions(g: Geometry) -> int:
    """Values of a channel that its statistics are of: M."""
    return g.batch * g.conv_height * g.conv_width


def statistics(weight: Tensor, moments: Moments, count: int) -> Statistics:
    """Of the output of a conv with that weight, at `count` positions."""
    groups, reduction = moments.mean.shape
    rows = weight.to(WIDE).reshape(groups, -1, reduction)
    projection = rows @ moments.scatter  # which is symmetric
    mean = (rows @ moments.mean[..., None]).flatten()
    variance = ((rows * projection).sum(2).flatten() / count).clamp_min(0)  # of a constant: rounding; keeps NaN
    return Statistics(mean, variance, moments.mean, projection.flatten(0, 1))


def scale(variance: Tensor, gamma: Tensor | None, eps: float) -> Scale:
    reciprocal = (variance + eps).rsqrt()
    return Scale(reciprocal, reciprocal if gamma is None else reciprocal * gamma.to(WIDE))


def folded_weight(weight: Tensor, factor: Tensor) -> Tensor:
    """w': weight with each output channel times its factor, in weight's dtype and memory format."""
    return torch.empty_like(weight).copy_(weight.to(WIDE) * factor[:, None, None, None])


def folded_bias(weight: Tensor, beta: Tensor | None, patch_mean: Tensor) -> Tensor:
    """b' for the folded weight as it was rounded: so a channel's mean is beta in low precision too."""
    groups, reduction = patch_mean.shape
    mean = (weight.to(WIDE).reshape(groups, -1, reduction) @ patch_mean[..., None]).flatten()
    return (-mean if beta is None else beta.to(WIDE) - mean).to(weight.dtype)


class Gradients(NamedTuple):
    """dw and dgamma in float64 (C_out, K) and (C_out,), and per channel what dx loses: `slope * (w . P) + offset`."""

    weight: Tensor
    gamma: Tensor
    slope: Tensor
    offset: Tensor


def gradients(dw: Tensor, db: Tensor, weight: Tensor, found: Statistics, factor: Scale, count: int) -> Gradients:
    """From the op's dw and db for the folded weight and bias (D and B above)."""
    groups, reduction = found.patch_mean.shape
    rows, dense, live = weight.to(WIDE).reshape(-1, reduction), dw.to(WIDE).reshape(-1, reduction), db.to(WIDE)
    gamma = factor.reciprocal * ((dense * rows).sum(1) - live * found.mean)
    k = factor.reciprocal * gamma / count
    patch_mean = found.patch_mean.repeat_interleave(rows.shape[0] // groups, 0)
    grad = factor.scale[:, None] * (dense - live[:, None] * patch_mean - k[:, None] * found.projection)
    slope = factor.scale * k
    return Gradients(grad, gamma, slope, factor.scale * live / count - slope * found.mean)


def dense_input_grad(x: Tensor, weight: Tensor, slope: Tensor, offset: Tensor, g: Geometry) -> Tensor:
    """conv_transpose(slope * conv(x, weight) + offset, weight): every position's part in mean and variance.

    One array of the conv output's size exists meanwhile.
    """
    s = g.settings
    dz = eager.conv(x, folded_weight(weight, slope), offset.to(weight.dtype), s)
    top, bottom, left, right = s.padding
    padded = g.batch, g.in_channels, g.height + top + bottom, g.width + left + right
    dx = conv2d_input(padded, weight, dz, s.stride, 0, s.dilation, s.groups)
    return F.pad(dx, (-left, -right, -top, -bottom))
