"""`conv_bn_relu_max_pool2d`: checks the arguments, asks for a plan, runs it, and updates the running statistics."""

import inspect
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from convpool import planning
from convpool.batchnorm import autograd, fold
from convpool.batchnorm.eager import bn_relu_max_pool, check_count, move
from convpool.functional import conv_relu_max_pool2d, prepare, refuse_tracing
from convpool.geometry import Pair
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
        ValueError: shapes, devices or values do not fit; a channel has one value only; or running statistics are half
            given, or missing with training=False.
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
    _check_numbers(training, momentum, eps)
    if not training:
        moving: tuple[Any, Any] = running_mean, running_var
        weight, bias = fold.under_running_statistics(weight, bias, gamma, beta, *moving, eps)
        return conv_relu_max_pool2d(x, weight, bias, **named)
    x, weight, bias, g, plan = prepare(x, weight, bias, options, False, planning.normalised)
    check_count(g.conv_shape)
    if g.batch == 0:
        plan, momentum = planning.plain("an empty batch has no statistics"), 0.0
    elif not plan.is_torch and are_functorch_transforms_active():
        obstacle = "no backend computes the derivatives of torch.func under batch statistics"
        if not planning.allows_torch(planning.requested_backend()):
            raise RuntimeError(f"backend {planning.requested_backend()!r} cannot serve this call: {obstacle}")
        plan = planning.plain(obstacle)
    if plan.is_torch:
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
    refuse_tracing()

    def update(mean: Tensor, variance: Tensor) -> None:
        if running_mean is not None and running_var is not None:
            count = fold.positions(g)
            move(running_mean, mean if bias is None else mean + bias.detach(), momentum)
            move(running_var, variance * (count / (count - 1)), momentum)

    return autograd.apply(x, weight, bias, gamma, beta, eps, g.settings, plan, update)


_OPTIONS = tuple(inspect.signature(conv_bn_relu_max_pool2d).parameters)[10:]


def _check_norm(x: Tensor, weight: Tensor, norm: tuple[Tensor | None, ...], training: bool) -> None:
    if isinstance(x, Tensor) and x.dim() != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}")
    for name, tensor in zip(("gamma", "beta", "running_mean", "running_var"), norm, strict=True):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be of a floating-point type, got {tensor.dtype}")
        if isinstance(weight, Tensor) and tensor.shape != weight.shape[:1]:
            raise ValueError(
                f"{name} must have shape ({weight.shape[0]},) to go with weight, got {tuple(tensor.shape)}"
            )
        if isinstance(weight, Tensor) and tensor.device != weight.device:
            raise ValueError(f"{name} must have the device of weight, {weight.device}, got {tensor.device}")
    if not training and (norm[2] is None or norm[3] is None):
        raise ValueError("training=False needs running_mean and running_var, got None")
    if (norm[2] is None) != (norm[3] is None):
        raise ValueError("running_mean and running_var must be given both or not at all, got one of them")


def _check_numbers(training: bool, momentum: float | Tensor, eps: float) -> None:
    if not isinstance(momentum, int | float | Tensor):
        raise TypeError(f"momentum must be a number or a Tensor, got {type(momentum).__name__}")
    if isinstance(momentum, Tensor) and momentum.numel() != 1:
        raise ValueError(f"momentum must have one element, got shape {tuple(momentum.shape)}")
    if not isinstance(eps, int | float):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if training and not eps > 0:
        raise ValueError(f"eps must be positive with training=True, got {eps}")
