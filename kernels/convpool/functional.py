"""`conv_relu_max_pool2d`: checks the arguments, asks for a plan, and runs it."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from convpool import autograd, eager, planning
from convpool.geometry import Geometry, Pair, make_settings
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
    x, weight, bias, geometry, plan = _prepare(x, weight, bias, options)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    if plan.plan == "plain":
        y = eager.fastest(batched, weight, bias, geometry.settings)
    else:
        y = autograd.apply(batched, weight, bias, geometry, plan)
    return y if x.dim() == 4 else y.squeeze(0)


def explain(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Plan:
    """The plan that `conv_relu_max_pool2d` would follow for these arguments: backend, plan, kernel and reason.

    Takes the op's arguments (those after `bias` by name), computes nothing, and raises as the op does.
    """
    return _prepare(x, weight, bias, options)[-1]


def _prepare(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None, Geometry, Plan]:
    """The tensors, in autocast's type where that is on, and what is to be done with them."""
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (name == "bias" and tensor is None):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    device_type = x.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        x, weight, bias = _autocast(x), _autocast(weight), None if bias is None else _autocast(bias)
    requested = planning.requested_backend()
    if list in map(type, options.values()):
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    # The compiler sees no caches, and must see the comparisons of symbolic sizes that it has to guard on.
    symbolic = torch.compiler.is_compiling() or any(type(n) is not int for n in x.shape)
    geometry, plan = (_decide if symbolic else _decide_once)(
        _Seen.of(x), _Seen.of(weight), None if bias is None else _Seen.of(bias), requested, **options
    )
    obstacle = _obstacle(x, weight)
    if obstacle and requested != "auto":
        raise RuntimeError(f"backend {requested!r} cannot serve this call: {obstacle}")
    return x, weight, bias, geometry, planning.plain(obstacle) if obstacle else plan


class _Seen(NamedTuple):
    """What decides about a tensor, whatever its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, t: Tensor) -> "_Seen":
        return cls(tuple(t.shape), t.dtype, t.device)


def _decide(x: _Seen, weight: _Seen, bias: _Seen | None, requested: str, **options: Any) -> tuple[Geometry, Plan]:
    """All that can be wrong with a call's shapes and options, then its sizes and plan."""
    _check_shapes(x, weight, bias)
    settings = make_settings(weight.shape[2:], **options)
    _check_same("dtype", TypeError, x, weight, bias)
    _check_same("device", ValueError, x, weight, bias)
    batched = x.shape if len(x.shape) == 4 else (1, *x.shape)
    return planning.choose(batched, weight.shape, settings, x.dtype, x.device, requested)


_decide_once = lru_cache(4096)(_decide)


def _obstacle(x: Tensor, weight: Tensor) -> str | None:
    """What keeps every backend from a call, whatever its geometry."""
    for tensor in (x, weight):
        if is_traceable_wrapper_subclass(tensor):
            return f"no backend for tensors of type {type(tensor).__name__}"
    if forward_ad._current_level >= 0:
        return "no backend computes forward-mode derivatives"
    return None


def _check_shapes(x: _Seen, weight: _Seen, bias: _Seen | None) -> None:
    if len(x.shape) not in (3, 4):
        raise ValueError(f"x must be (N, C, H, W) or (C, H, W), got shape {x.shape}")
    if len(weight.shape) != 4:
        raise ValueError(f"weight must be (C_out, C_in / groups, kH, kW), got shape {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},) to go with weight, got {bias.shape}")


def _check_same(attribute: str, error: type[Exception], x: _Seen, weight: _Seen, bias: _Seen | None) -> None:
    expected = getattr(x, attribute)
    for name, seen in (("weight", weight), ("bias", bias)):
        if seen is not None and getattr(seen, attribute) != expected:
            raise error(f"{name} must have the {attribute} of x, {expected}, got {getattr(seen, attribute)}")


def _autocast(t: Tensor) -> Tensor:
    """As torch casts for conv2d: floating-point arguments but float64 ones."""
    if not t.is_floating_point() or t.dtype == torch.float64:
        return t
    return t.to(torch.get_autocast_dtype(t.device.type))
