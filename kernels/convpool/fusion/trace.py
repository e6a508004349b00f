"""What one module's own forward does, as a graph in which every submodule is one node.

torch.fx runs the forward once on stand-ins for tensors. What such a run cannot show faithfully (branches on data,
random numbers, tensors made on the spot, changed attributes, grad-mode switches) is refused with a reason.
"""

import inspect
import random
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

_PLAIN = (bool, int, float, str, type(None))  # attributes of these types are cheap to compare at every call

_MODULE_STATE = frozenset(vars(nn.Module()))  # torch's own bookkeeping, `training` too: it chooses the graph

# Names whose presence in a forward, or in the methods it calls, means that a stand-in gives another answer than a
# tensor (isinstance), or that the graph would lose something (the rest).
_OPAQUE_NAMES = {
    "isinstance": "asks for the type of its inputs",
    "is_tensor": "asks for the type of its inputs",
    "checkpoint": "uses activation checkpointing",
    "checkpoint_sequential": "uses activation checkpointing",
    "autocast": "switches autocast",
    "no_grad": "switches grad mode",
    "enable_grad": "switches grad mode",
    "set_grad_enabled": "switches grad mode",
    "inference_mode": "switches grad mode",
    "print": "prints",
}


@dataclass(frozen=True)
class Traced:
    """A forward's graph, and what it holds for.

    `inputs`: the parameters without a default, those the graph takes; the others had their default values.
    `flags`: path of a module, name and value of an attribute, for the plain attributes that may have decided the way.
    """

    graph: fx.Graph
    inputs: tuple[str, ...]
    flags: tuple[tuple[str, str, Any], ...]


def trace(module: nn.Module, cls: type[nn.Module], training: bool) -> Traced | str:
    """The graph of `cls.forward(module, ...)` after `module.train(training)`, or in words why there is none.

    The module is left as it was, whatever its forward did.
    """
    if "forward" in vars(module):
        return "forward was replaced on the instance"
    if "parametrizations" in module._modules:
        return "the module itself is parametrized, which needs its class as it is"
    forward: Any = cls.forward
    if not isinstance(forward, FunctionType) or hasattr(forward, "__wrapped__"):
        return "forward is decorated or not a Python function"
    inputs = _required(forward)
    if inputs is None:
        return "forward has arguments that can only be given by name"
    for name in sorted(reachable_names(cls) & _OPAQUE_NAMES.keys()):
        return f"forward {_OPAQUE_NAMES[name]} ({name})"
    return _run(module, cls, inputs, training)


def _run(module: nn.Module, cls: type[nn.Module], inputs: tuple[str, ...], training: bool) -> Traced | str:
    reads: set[str] = set()
    own_class, state, rng = type(module), dict(vars(module)), _rng_state()
    contents = {name: copy(value) for name, value in state.items() if type(value) in (list, dict, set)}
    modes = {inner: inner.training for inner in module.modules()}
    try:
        for inner in modes:
            inner.training = training
        try:
            module.__class__ = _watched(cls, reads)
            graph = _Tracer(inputs).trace(module)
        except Exception as error:  # whatever a user's forward raises when it gets a stand-in for a tensor
            return f"forward cannot be traced: {type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"
        changed = [name for name, value in vars(module).items() if name != "training" and value is not state.get(name)]
        changed += [name for name, value in contents.items() if not _same_items(value, state[name])]
        if changed:
            return f"forward changes self.{changed[0]}"
        if not _same_rng(rng, _rng_state()):
            return "forward draws random numbers outside the graph"
        flags = [("", name, state[name]) for name in sorted(reads & (state.keys() - _MODULE_STATE))]
        flags += [flag for path in _looked_into(module, graph) for flag in _attributes(module, path)]
        return Traced(graph, inputs, tuple(flag for flag in flags if _is_plain(flag[2])))
    finally:
        for inner, mode in modes.items():
            inner.training = mode
        module.__class__ = own_class
        vars(module).clear()
        vars(module).update(state)
        for name, value in contents.items():
            state[name].clear()
            (state[name].extend if isinstance(value, list) else state[name].update)(value)
        _set_rng(rng)


def _watched(cls: Any, reads: set[str]) -> type[nn.Module]:
    """`cls`, noting which attributes of its instance are read."""

    class Watched(cls):
        def __getattribute__(self, name: str) -> Any:
            reads.add(name)
            return super().__getattribute__(name)

    return Watched


def _looked_into(module: nn.Module, graph: fx.Graph) -> list[str]:
    """Paths of the submodules that the forward did not call as such, but whose methods it may have run."""
    called = tuple(f"{node.target}." for node in graph.nodes if node.op == "call_module")
    return [
        path
        for path, inner in module.named_modules()
        if path and not f"{path}.".startswith(called) and type(inner).forward is not nn.Module.forward
    ]


def _attributes(module: nn.Module, path: str) -> list[tuple[str, str, Any]]:
    inner = vars(module.get_submodule(path))
    return [(path, name, value) for name, value in inner.items() if name == "training" or name not in _MODULE_STATE]


class _Tracer(fx.Tracer):
    def __init__(self, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.proxy_buffer_attributes = True
        self._inputs = inputs
        self._grad_mode = _grad_mode()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self._inputs)]

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        if _grad_mode() != self._grad_mode:
            raise RuntimeError("switches grad mode")
        return super().create_proxy(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        arg = super().create_arg(a)
        if isinstance(a, Tensor) and "_tensor_constant" in str(getattr(arg, "target", "")):
            raise RuntimeError("makes tensors of its own")
        return arg


def _grad_mode() -> tuple[bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def _required(forward: Callable[..., Any]) -> tuple[str, ...] | None:
    """Names of the parameters after self that have no default; None if one of them can only be given by name."""
    code: CodeType = forward.__code__
    if code.co_kwonlyargcount > len(forward.__kwdefaults__ or ()):
        return None
    return code.co_varnames[1 : code.co_argcount - len(forward.__defaults__ or ())]


def _reachable_names(cls: Any) -> frozenset[str]:
    """The names that a class's forward uses, and the methods and functions of these names; torch's own aside."""
    names: set[str] = set()
    seen: set[FunctionType] = set()
    todo: list[Any] = [cls.forward]
    while todo:
        function = todo.pop()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        function = inspect.unwrap(function)  # what a decorator hides
        if (function.__module__ or "").startswith("torch."):
            continue
        codes = [function.__code__]
        for code in codes:
            codes.extend(inner for inner in code.co_consts if isinstance(inner, CodeType))
            for name in code.co_names:
                names.add(name)
                todo.extend(vars(owner).get(name) for owner in cls.__mro__)
                todo.append(function.__globals__.get(name))
    return frozenset(names)


reachable_names: Callable[[Any], frozenset[str]] = lru_cache(1024)(_reachable_names)


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if type(value) is tuple else type(value) in _PLAIN


def _same_items(before: Any, now: Any) -> bool:
    """Whether a list, dict or set still holds the same objects."""
    if isinstance(now, dict):
        before, now = [*before, *before.values()], [*now, *now.values()]
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))


def _rng_state() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    return random.getstate(), torch.get_rng_state(), numpy.random.get_state() if numpy else None


def _same_rng(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    if before[0] != now[0] or not torch.equal(before[1], now[1]):
        return False
    return before[2] is None or (before[2][2] == now[2][2] and bool((before[2][1] == now[2][1]).all()))


def _set_rng(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    torch.set_rng_state(state[1])
    if state[2] is not None:
        sys.modules["numpy"].random.set_state(state[2])
