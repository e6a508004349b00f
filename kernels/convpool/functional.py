"""`conv_relu_max_pool2d`: checks the arguments, asks for a plan, and runs it."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from convpool import autograd, eager, planning
from convpool.geometry import Pair, Settings, make_settings, make_settings_once
from convpool.protocol import Plan


def conv_relu_max_pool2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    *,
    pool_kernel_size: int | Pair = 2,
    pool_stride: int | Pair | None = None,
    pool_padding: int | Pair = 0,
    pool_dilation: int | Pair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """`max_pool2d(relu(conv2d(x, weight, bias)))` as one op: torch's value and gradients, in torch's memory format.

    Args:
        x: (N, C_in, H, W) or (C_in, H, W), floating point, any strides.
        weight: (C_out, C_in / groups, kernel height, kernel width), dtype and device of x.
        bias: (C_out,) or None.
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`; padding may be "same" or "valid".
        pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode: as in `torch.nn.functional.max_pool2d`.

    Returns:
        (N, C_out, pooled H, pooled W), or without N where x has none.

    Raises:
        TypeError: an argument has the wrong type, or the tensors' dtypes differ.
        ValueError: shapes, devices or values do not fit; the message names the argument, its value and what is allowed.
        RuntimeError: a backend named by `use_backend` or CONVPOOL_BACKEND cannot serve the call.
    """
    options: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "pool_kernel_size": pool_kernel_size,
        "pool_stride": pool_stride,
        "pool_padding": pool_padding,
        "pool_dilation": pool_dilation,
        "ceil_mode": ceil_mode,
    }
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if has_torch_function(tensors):
        return handle_torch_function(conv_relu_max_pool2d, tensors, x, weight, bias, **options)
    x, weight, bias, settings = _prepare(x, weight, bias, options)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    plan = _plan(batched, weight, settings)
    if plan.plan == "plain":
        y = eager.fastest(batched, weight, bias, settings)
    else:
        y = autograd.apply(batched, weight, bias, settings, plan.backend)
    return y if x.dim() == 4 else y.squeeze(0)


def explain(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Plan:
    """The plan that `conv_relu_max_pool2d` would follow for these arguments: backend, plan, kernel and reason.

    Takes the op's arguments (those after `bias` by name), computes nothing, and raises as the op does.
    """
    x, weight, _, settings = _prepare(x, weight, bias, options)
    return _plan(x if x.dim() == 4 else x.unsqueeze(0), weight, settings)


def _prepare(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None, Settings]:
    """Checked tensors, in autocast's type where that is on, and the normalised settings."""
    _check_tensors(x, weight, bias)
    hashable: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    normalise = make_settings if torch.compiler.is_compiling() else make_settings_once  # the compiler sees no caches
    settings = normalise(tuple(weight.shape[2:]), **hashable)
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        x, weight, bias = _autocast(x), _autocast(weight), None if bias is None else _autocast(bias)
    _check_same("dtype", TypeError, x, weight, bias)
    _check_same("device", ValueError, x, weight, bias)
    return x, weight, bias, settings


def _plan(x: Tensor, weight: Tensor, settings: Settings) -> Plan:
    requested = planning.requested_backend()
    plan = planning.choose(tuple(x.shape), tuple(weight.shape), settings, x.dtype, x.device, requested)[1]
    obstacle = _obstacle(x, weight)
    if obstacle and requested != "auto":
        raise RuntimeError(f"backend {requested!r} cannot serve this call: {obstacle}")
    return planning.plain(obstacle) if obstacle else plan


def _obstacle(x: Tensor, weight: Tensor) -> str | None:
    """What keeps every backend from a call, whatever its geometry."""
    for tensor in (x, weight):
        if is_traceable_wrapper_subclass(tensor):
            return f"no backend for tensors of type {type(tensor).__name__}"
    if forward_ad._current_level >= 0:
        return "no backend computes forward-mode derivatives"
    return None


def _check_tensors(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (name == "bias" and tensor is None):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if x.dim() not in (3, 4):
        raise ValueError(f"x must be (N, C, H, W) or (C, H, W), got shape {tuple(x.shape)}")
    if weight.dim() != 4:
        raise ValueError(f"weight must be (C_out, C_in / groups, kH, kW), got shape {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},) to go with weight, got {tuple(bias.shape)}")


def _check_same(attribute: str, error: type[Exception], x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    expected = getattr(x, attribute)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and getattr(tensor, attribute) != expected:
            raise error(f"{name} must have the {attribute} of x, {expected}, got {getattr(tensor, attribute)}")


def _autocast(t: Tensor) -> Tensor:
    """As torch casts for conv2d: floating-point arguments but float64 ones."""
    if not t.is_floating_point() or t.dtype == torch.float64:
        return t
    return t.to(torch.get_autocast_dtype(t.device.type))
