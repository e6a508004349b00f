"""`conv_relu_max_pool2d`: checks the arguments, asks for a plan, and runs it."""

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from convpool import autograd, eager, known, operators, planning, registry, torch_private
from convpool.checks import check_memory
from convpool.geometry import Geometry, Pair
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
    contiguous_output: bool = False,
) -> Tensor:
    """`max_pool2d(relu(conv2d(x, weight, bias)))` as one op: torch's value and gradients, in torch's memory format.

    One difference is meant: what loses in its pool window adds exactly 0 to a gradient even beside NaN and infinity,
    where torch's layers form 0 * inf = NaN. docs/fuse.md says what GradScaler and anomaly detection make of it.

    Args:
        x: (N, C_in, H, W) or (C_in, H, W), floating point, any strides.
        weight: (C_out, C_in / groups, kernel height, kernel width), dtype and device of x.
        bias: (C_out,) or None.
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`; padding may be "same" or "valid".
        pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode: as in `torch.nn.functional.max_pool2d`.
        contiguous_output: return y contiguous whatever the format of x, so that flattening it copies nothing.

    Returns:
        (N, C_out, pooled H, pooled W), or without N where x has none.

    Raises:
        TypeError: an argument has the wrong type, or the tensors' dtypes differ.
        ValueError: shapes, devices or values do not fit; the message names the argument, its value and what is allowed.
        RuntimeError: a backend named by `use_backend` or CONVPOOL_BACKEND cannot serve the call, or torch.jit.trace
            would record one that a backend serves.
    """
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
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if has_torch_function(tensors):
        named: dict[str, Any] = dict(zip(_OPTIONS, options, strict=True))
        return handle_torch_function(conv_relu_max_pool2d, tensors, x, weight, bias, **named)
    compute = known.find(tensors, options)
    if compute is not None:
        return compute(x, weight, bias)
    unseen = torch_private.unseen(*tensors)
    x, weight, bias, geometry, plan = prepare(x, weight, bias, options, unseen)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    if unseen:
        compute = _computed(batched, weight, bias, geometry, plan)
        check_memory(x=batched, weight=weight, bias=bias)
        with operators.without_autocast(x):
            y = compute(batched, weight, bias)
        if batched is tensors[0] and not operators.autocasts(x):
            known.keep(compute, tensors, options, by_address=not plan.is_torch)
    elif plan.is_torch:
        y = eager.planned(batched, weight, bias, geometry, plan.plan)
    else:
        refuse_tracing()  # a tracer is seen: other calls do not pay for the question
        y = autograd.apply(batched, weight, bias, geometry, plan)
    return y if x.dim() == 4 else y.squeeze(0)


def _computed(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: Plan) -> known.Compute:
    """What computes a call on batched tensors like these that nothing but autograd has to see."""
    if plan.is_torch:
        return eager.bound(x, weight, geometry, plan.plan)
    return partial(autograd.apply_unseen, known.Call(geometry, plan.call, x, weight, bias))


_SIGNATURE = inspect.signature(conv_relu_max_pool2d)
_OPTIONS = tuple(_SIGNATURE.parameters)[3:]


def explain(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, batch_statistics: bool = False, **options: Any
) -> Plan:
    """The plan that `conv_relu_max_pool2d` would follow for these arguments: backend, plan, kernels and reason.

    The kernels are those of a forward pass, and of a backward pass for what requires a gradient. Takes the op's
    arguments (those after `bias` by name), computes nothing, and raises as the op does.

    Args:
        batch_statistics: the plan of `conv_bn_relu_max_pool2d` in training mode instead.
    """
    call = _SIGNATURE.bind(x, weight, bias, **options)
    call.apply_defaults()
    needs = x.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad
    if batch_statistics and any(needs):
        needs = x.requires_grad, True, True  # every gradient is made of these two
    values = call.args[3:] + tuple(call.kwargs.values())
    ask = planning.normalised if batch_statistics else planning.as_it_is
    x, weight, bias, geometry, plan = prepare(x, weight, bias, values, False, ask)
    lost = torch_private.missing()
    if lost:
        plan = replace(plan, reason=f"{plan.reason}; a fast path is off: this torch has no {', '.join(lost)}")
    if plan.is_torch:
        return plan
    backend, word = registry.running(plan.call)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    kernels = backend.kernels(batched, weight, geometry, word, needs)
    return replace(plan, kernels=("patch_moments", *kernels) if batch_statistics else kernels)


def prepare(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: tuple[Any, ...],
    unseen: bool,
    ask: planning.Question = planning.as_it_is,
) -> tuple[Tensor, Tensor, Tensor | None, Geometry, Plan]:
    """The tensors, in autocast's type where that is on, and what is to be done with them.

    Raises as `conv_relu_max_pool2d`, whose options these are, in their order.
    Python's share is most of a small layer's time, so what `torch_private.unseen` rules out is not looked at again.
    """
    if not unseen:
        _check_types(x, weight, bias)
    device = x.device
    if operators.autocasts(x):
        x, weight = x.to(autocast_dtype(x)), weight.to(autocast_dtype(weight))
        bias = None if bias is None else bias.to(autocast_dtype(bias))
    requested = planning.requested_backend()
    types = tuple(map(type, options))
    if list in types:
        options = tuple(tuple(value) if isinstance(value, list) else value for value in options)
    use = planning.use_of(x, weight, bias, requested)
    # The compiler sees no caches, and must see the comparisons of symbolic sizes that it has to guard on.
    decide = planning.decide if use.symbolic or not _OPTION_TYPES.issuperset(types) else planning.decide_once
    b = weight if bias is None else bias  # no bias, nothing to find wrong with it
    geometry, plan = decide(
        (x.shape, weight.shape, None if bias is None else bias.shape),
        (x.dtype, weight.dtype, b.dtype),
        (device, weight.device, b.device),
        requested,
        use,
        options,
        types,
        ask,
    )
    obstacle = _obstacle(x, weight, bias, unseen)
    if obstacle and not planning.allows_torch(requested):
        raise RuntimeError(f"backend {requested!r} cannot serve this call: {obstacle}")
    return x, weight, bias, geometry, planning.plain(obstacle) if obstacle else plan


_OPTION_TYPES = {int, tuple, list, str, bool, type(None)}  # what is hashable then; anything else is looked at anew


def _obstacle(x: Tensor, weight: Tensor, bias: Tensor | None, unseen: bool) -> str | None:
    """What keeps every backend from a call, whatever its geometry."""
    for tensor in () if unseen else (x, weight):
        if type(tensor) is not Tensor and hasattr(tensor, "__tensor_flatten__"):  # torch's wrapper subclasses have it
            return f"no backend for tensors of type {type(tensor).__name__}"
        if tensor.layout is not torch.strided:
            return f"no backend for tensors of layout {tensor.layout}"
    if not unseen and torch_private.in_forward_mode(x, weight, bias):
        return "no backend computes forward-mode derivatives"
    return None


def _check_types(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (name == "bias" and tensor is None):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")


def refuse_tracing() -> None:
    if torch.jit.is_tracing():
        raise RuntimeError(
            "torch.jit.trace cannot record what a backend computes: "
            "trace convpool.unfuse(model), and set plain = True of each ConvReLUMaxPool2d and ConvBNReLUMaxPool2d"
        )


def autocast_dtype(t: Tensor) -> torch.dtype:
    """The type in which conv2d takes t at the moment: autocast's, but for integers and float64."""
    if not operators.autocasts(t) or not t.is_floating_point() or t.dtype == torch.float64:
        return t.dtype
    return torch.get_autocast_dtype(t.device.type)
