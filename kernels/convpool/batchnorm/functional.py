"""`conv_bn_relu_max_pool2d`: checks the arguments, asks for a plan, runs it, and updates the running statistics."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from convpool import planning
from convpool.batchnorm import autograd, fold
from convpool.batchnorm.eager import bn_relu_max_pool, check_count
from convpool.functional import conv_relu_max_pool2d, prepare
from convpool.geometry import Geometry, Pair
from convpool.torch_private import are_functorch_transforms_active


def conv_bn_relu_max_pool2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    pool_kernel_size: int | Pair = 2,
    pool_stride: int | Pair | None = None,
    pool_padding: int | Pair = 0,
    pool_dilation: int | Pair = 1,
    ceil_mode: bool = False,
    contiguous_output: bool = False,
) -> Tensor:
    """`max_pool2d(relu(batch_norm(conv2d(x, weight, bias))))` as one op: torch's value, gradients and statistics.

    In training mode the batch's statistics normalise, and the running ones move towards them. Where a backend serves,
    nothing of the conv output's size is kept between forward and backward, and bias has a gradient of exactly 0 (torch
    makes rounding errors of it); elsewhere torch's layers run.

    Args:
        x: (N, C_in, H, W), floating point, any strides.
        weight: (C_out, C_in / groups, kernel height, kernel width), dtype and device of x.
        bias: (C_out,) or None.
        gamma, beta: (C_out,) or None: weight and bias of the norm.
        running_mean, running_var: (C_out,) or None; given with training=True they are updated in place.
        training: normalise by the batch's own statistics, as `torch.nn.functional.batch_norm`.
        momentum: the batch's share of the new running statistics; a tensor of one element is not waited for.
        eps: what is added to the variance.
        stride, ..., contiguous_output: as in `conv_relu_max_pool2d`.

    Returns:
        (N, C_out, pooled H, pooled W).

    Raises:
        TypeError: an argument has the wrong type, or the tensors' dtypes differ.
        ValueError: shapes, devices or values do not fit; a channel has one value only; or training=False without
            running statistics.
        RuntimeError: a backend named by `use_backend` or CONVPOOL_BACKEND cannot serve the call, or torch.jit.trace
            would record one that a backend serves.
    """
    norm = gamma, beta, running_mean, running_var
    options = (
        stride,
        padding,
        dilation,
        groups,
        pool_kernel_size,
        pool_stride,
        pool_padding,
        pool_dilation,
        ceil_mode,
        contiguous_output,
    )
    tensors = tuple(t for t in (x, weight, bias, *norm) if t is not None)
    named: dict[str, Any] = dict(zip(_OPTIONS, options, strict=True))
    if has_torch_function(tensors):
        named |= {"training": training, "momentum": momentum, "eps": eps}
        return handle_torch_function(conv_bn_relu_max_pool2d, tensors, x, weight, bias, *norm, **named)
    _check_norm(x, weight, norm, training)
    if not training:
        moving: tuple[Any, Any] = running_mean, running_var
        weight, bias = fold.under_running_statistics(weight, bias, gamma, beta, *moving, eps)
        return conv_relu_max_pool2d(x, weight, bias, **named)
    dx = isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()
    ask = planning.normalised_with_dx if dx else planning.normalised
    x, weight, bias, g, plan = prepare(x, weight, bias, options, False, ask)
    check_count(g.conv_shape)
    obstacle = _obstacle(g)
    if obstacle and plan.plan != "plain":
        if planning.requested_backend() != "auto":
            raise RuntimeError(f"backend {planning.requested_backend()!r} cannot serve this call: {obstacle}")
        plan = planning.plain(obstacle)
    if plan.plan == "plain":
        if isinstance(momentum, Tensor):
            momentum = float(momentum)
        return bn_relu_max_pool(
            x,
            weight,
            bias,
            gamma,
            beta,
            g.settings,
            eps=eps,
            running_mean=running_mean,
            running_var=running_var,
            momentum=momentum,
        )
    if torch.jit.is_tracing():
        raise RuntimeError(
            "torch.jit.trace cannot record conv_bn_relu_max_pool2d: "
            "trace convpool.unfuse(model), and set plain = True of each ConvBNReLUMaxPool2d"
        )
    y, mean, variance = autograd.apply(x, weight, bias, gamma, beta, eps, g.settings, plan)
    count = fold.positions(g)
    with torch.no_grad():
        if running_mean is not None:
            _move(running_mean, mean if bias is None else mean + bias, momentum)
        if running_var is not None:
            _move(running_var, variance * (count / (count - 1)), momentum)
    return y


_OPTIONS = tuple(inspect.signature(conv_bn_relu_max_pool2d).parameters)[10:]


def _move(running: Tensor, batch: Tensor, momentum: float | Tensor) -> None:
    if isinstance(momentum, Tensor):
        momentum = momentum.to(running.dtype)
    running.lerp_(batch.to(running.dtype), momentum)


def _obstacle(g: Geometry) -> str | None:
    """What keeps every backend from a call in training mode, besides what `prepare` finds."""
    if g.batch == 0:
        return "an empty batch has no statistics"
    if are_functorch_transforms_active():
        return "no backend computes the derivatives of torch.func under batch statistics"
    return None


def _check_norm(x: Tensor, weight: Tensor, norm: tuple[Tensor | None, ...], training: bool) -> None:
    if isinstance(x, Tensor) and x.dim() != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}")
    for name, tensor in zip(("gamma", "beta", "running_mean", "running_var"), norm, strict=True):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if isinstance(weight, Tensor) and tensor.shape != weight.shape[:1]:
            raise ValueError(
                f"{name} must have shape ({weight.shape[0]},) to go with weight, got {tuple(tensor.shape)}"
            )
        if isinstance(weight, Tensor) and tensor.device != weight.device:
            raise ValueError(f"{name} must have the device of weight, {weight.device}, got {tensor.device}")
    if not training and (norm[2] is None or norm[3] is None):
        raise ValueError("training=False needs running_mean and running_var, got None")
