"""Every private name of torch and Triton, looked up once at import; no other file of the project knows one.

A torch that renames one of them still gets right results: each name has a safe answer, which takes a longer way, and
`missing` lists it for `explain`. What can be found out by public means needs no name at all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.fx.node import map_aggregate
from torch.nn import Parameter

T = TypeVar("T", bound=Callable[..., Any])

_asked: dict[str, bool] = {}  # by name, whether this torch has it


def _found(path: str, otherwise: Any = None) -> Any:
    """Returns what torch keeps at `path`, or `otherwise`."""
    try:
        found = attrgetter(path)(torch)
    except AttributeError:
        _asked[f"torch.{path}"] = False
        return otherwise
    _asked[f"torch.{path}"] = True
    return found


def missing() -> tuple[str, ...]:
    """The names that this torch does not have, and without which convpool is slower: `("torch._C._is_tracing",)`."""
    return tuple(name for name, found in _asked.items() if not found)


# Calls that nothing but autograd sees ---------------------------------------------------------------------------------

are_functorch_transforms_active: Callable[[], bool] = _found("_C._are_functorch_transforms_active", lambda: True)
_is_tracing = _found("_C._is_tracing")
_len_torch_dispatch_stack = _found("_C._len_torch_dispatch_stack")
_dispatch_keys = _found("_C._dispatch_keys")
_HAS_LEVEL = _found("autograd.forward_ad._current_level") is not None


def _plain_keys() -> frozenset[int]:
    """The dispatch keys of tensors that are numbers in memory, and no more: made in inference mode, and otherwise."""
    keys, key = _found("_C.DispatchKeySet"), _found("_C.DispatchKey")
    if keys is None or key is None:
        return frozenset()
    names = "CPU", "AutocastCPU", "AutogradCPU", "CUDA", "AutocastCUDA", "AutogradCUDA", "ADInplaceOrView"
    one = {name: _found(f"_C.DispatchKey.{name}") for name in names}
    raw = _found("_C.DispatchKeySet.raw_repr")
    if missing():
        return frozenset()
    found: list[Any] = []
    for device in ("CPU", "CUDA"):
        inference = keys(one[device]) | keys(one[f"Autocast{device}"])
        found += [inference, inference | keys(one[f"Autograd{device}"]) | keys(one["ADInplaceOrView"])]
    return frozenset(map(raw, found))


_PLAIN_KEYS = _plain_keys()
_PLAIN_TYPES = {Tensor, Parameter} if _PLAIN_KEYS else set()  # none is plain where one of the questions has no answer


def unseen(*tensors: Tensor) -> bool:
    """Whether nothing has to see the operators: no compiler, `torch.func`, forward-mode level, dispatch mode or tensor
    subclass, and no tensor that is not simply its memory, as a lazy negation and a batch of gradients are not."""
    if not _PLAIN_TYPES.issuperset(map(type, tensors)):
        return False
    # What torch.jit.is_tracing and is_in_torch_dispatch_mode come to, without a Python function each.
    return not (
        torch.compiler.is_compiling()
        or _is_tracing()
        or are_functorch_transforms_active()
        or _len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
    ) and all(_dispatch_keys(t).raw_repr() in _PLAIN_KEYS for t in tensors)


_TensorGuards = _found("_C._dynamo.guards.TensorGuards")
_TELLS = bool(_TensorGuards and _len_torch_dispatch_stack and _HAS_LEVEL)


def alike(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """A function of as many tensors: whether they have the type, dtype, device, sizes, strides and requires_grad of
    these, and mean the same to the dispatcher, autocast, inference mode, tracers and `torch.func` included.

    It does not see levels of forward mode, nor every dispatch mode: that is for `may_be_known`. None without torch's
    own, which the compiler asks before it runs a graph again.
    """
    if not may_be_known() or not _PLAIN_TYPES.issuperset(map(type, tensors)):
        return None
    sizes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
    try:
        guards = _TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    except TypeError:  # it is made otherwise in this torch
        return None
    return guards.check


def may_be_known() -> bool:
    """Whether a call can repeat one that was met before: in no mode that `alike` does not see."""
    if is_compiling():  # which folds it away
        return False
    return _TELLS and not (_len_torch_dispatch_stack() or forward_ad._current_level >= 0)


def in_forward_mode(*tensors: Tensor | None) -> bool:
    """Whether derivatives are taken forward, inside a level; without torch's word for it: whether a tensor has one."""
    if _HAS_LEVEL:
        return forward_ad._current_level >= 0
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


# True costs only the question, device by device.
is_any_autocast_enabled: Callable[[], bool] = _found("_C._is_any_autocast_enabled", lambda: True)

_precision_of = _found("_C._get_fp32_precision_getter")


def _conv_precision() -> str:
    found: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return found


# `torch.backends.cudnn.conv.fp32_precision`, in an eighth of its 1.3 us.
conv_precision: Callable[[], str] = partial(_precision_of, "cuda", "conv") if _precision_of else _conv_precision


# Modules --------------------------------------------------------------------------------------------------------------

# Where there may be some, nothing is fused: they see each layer.
has_any_global_hook: Callable[[], bool] = _found("nn.modules.module._has_any_global_hook", lambda: True)


def _tables(*registrations: tuple[str, tuple[Any, ...]]) -> tuple[str, ...]:
    """The attributes in which a module keeps what these methods register when they are called with these arguments."""
    names = []
    for method, arguments in registrations:
        module = nn.Module()
        getattr(module, method)(*arguments)
        filled = [name for name, value in vars(module).items() if isinstance(value, dict) and value]
        _asked[f"table that torch.nn.Module.{method} fills"] = bool(filled)
        names += filled
    return tuple(names)


_HOOKS = _tables(
    ("register_forward_hook", (print,)),
    ("register_forward_pre_hook", (print,)),
    ("register_full_backward_hook", (print,)),
    ("register_full_backward_pre_hook", (print,)),
)
# A module's own tables of what runs at its call besides its forward; none where they cannot all be seen.
CALL_HOOKS = _HOOKS if len(_HOOKS) == 4 else ()

CHILDREN = _tables(("register_module", ("name", None)))
TABLES = *_tables(("register_parameter", ("name", None)), ("register_buffer", ("name", None))), *CHILDREN


BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm  # their common class is private


def reversed_padding(conv: nn.Conv2d) -> Sequence[int] | None:
    """What conv gives F.pad where its padding_mode is not "zeros": settled when it was made, whatever `padding` says
    by now. None where it does not tell."""
    return getattr(conv, "_reversed_padding_repeated_twice", None)


# Trees of tensors, averages, the compiler -----------------------------------------------------------------------------


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    map_aggregate(tree, found.append)
    return found


# Without torch's own these know tuples, lists and dicts, but none of the containers that are registered with torch.
tree_leaves: Callable[[Any], list[Any]] = _found("utils._pytree.tree_leaves", _leaves)
tree_map: Callable[[Callable[[Any], Any], Any], Any] = _found(
    "utils._pytree.tree_map", lambda function, tree: map_aggregate(tree, function)
)


def _lerp_each(tensors: Sequence[Tensor], ends: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for tensor, end, weight in zip(tensors, ends, weights, strict=True):
        tensor.lerp_(end, weight)


def _copy_each(tensors: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for tensor, source in zip(tensors, sources, strict=True):
        tensor.copy_(source)


def _log_softmax_backward(gradient: Tensor, result: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return gradient - result.exp() * gradient.sum(dim, keepdim=True)


foreach_lerp_: Callable[..., Any] = _found("_foreach_lerp_", _lerp_each)
foreach_copy_: Callable[..., Any] = _found("_foreach_copy_", _copy_each)
log_softmax_backward: Callable[..., Tensor] = _found("_log_softmax_backward_data", _log_softmax_backward)


def constant_when_compiled(function: T) -> T:
    """Marks as `torch.compiler.assume_constant_result` does, which imports the whole compiler, 3 s at import time.

    A compiler that looks for another mark follows the function instead, or breaks its graph there.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def are_static(sizes: Sequence[int]) -> bool:
    """Whether sizes are numbers, and no symbols that stand for many."""
    if any(type(size) is not int for size in sizes):
        return False
    if not is_compiling():
        return True
    try:
        from torch.fx.experimental.symbolic_shapes import has_static_value  # the compiler has imported it
    except ImportError:
        return False
    return all(has_static_value(size) for size in sizes)


def is_compilers(error: BaseException) -> bool:
    """Whether torch.compile raised it for reasons of its own. Without these names it is an error like others."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


# Triton ---------------------------------------------------------------------------------------------------------------


def forget_driver(drivers: Any) -> None:
    """Undoes `set_active` of Triton's driver configuration; `reset_active` looks for a GPU at once."""
    if hasattr(drivers, "_active"):
        drivers._active = None
    else:
        drivers.reset_active()
