"""What one module's own forward does, as a graph in which every submodule is one node.

torch.fx runs the forward once on stand-ins for tensors. What such a run cannot show faithfully (branches on data,
random numbers, tensors made on the spot, changed attributes, grad-mode switches) is refused with a reason. What it read
of its modules is noted, so that each call can see whether the graph still holds.
"""

import dis
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from convpool.fusion.kept import Kept, attribute
from convpool.torch_private import CHILDREN, TABLES

# What reading these of a module shows is the same at every call, or looked at in each (`forward`, by `is_hooked`).
_UNNOTED = {"forward", *(name for name in vars(nn.Module()) if name not in ("training", *CHILDREN))}

# Names whose presence in a forward, or in the methods it calls, means that a stand-in gives another answer than a
# tensor (isinstance), or that the graph would lose something (the rest).
_OPAQUE_NAMES = {
    "isinstance": "asks for the type of its inputs",
    "is_tensor": "asks for the type of its inputs",
    "type()": "asks for the type of its inputs",
    "hasattr": "asks what its inputs have",
    "is_grad_enabled": "asks for the grad mode",
    "is_inference_mode_enabled": "asks for the grad mode",
    "is_autocast_enabled": "asks for autocast",
    "is_tracing": "asks who runs it",
    "is_compiling": "asks who runs it",
    "is_exporting": "asks who runs it",
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
    `notes`: what it read of its modules, which may have decided the way.
    """

    graph: fx.Graph
    inputs: tuple[str, ...]
    notes: tuple["Note", ...]


@dataclass(frozen=True)
class Note:
    """That a forward read attribute `name` of the submodule at `path` ("" is the module itself), and found `kept`."""

    path: str
    name: str
    kept: Kept

    def holds(self, module: nn.Module) -> bool:
        """Whether the attribute is what it was."""
        try:
            owner = module.get_submodule(self.path) if self.path else module
        except AttributeError:
            return False
        return self.kept.same(attribute(owner, self.name))


def trace(module: nn.Module, cls: type[nn.Module], training: bool) -> Traced | str:
    """The graph of `cls.forward(module, ...)` after `module.train(training)`, or in words why there is none.

    The module is left as it was, whatever its forward did.
    """
    if len(TABLES) < 3:
        return "this torch keeps a module's parameters, buffers or layers where convpool does not see them change"
    if "forward" in vars(module):
        return "forward was replaced on the instance"
    if is_parametrized(module):
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
    rng, paths = _rng_state(), {inner: path for path, inner in module.named_modules()}
    before = {inner: Kept(vars(inner)) for inner in paths}
    try:
        for inner in paths:
            inner.training = training
        try:
            with _watched(module, cls) as reads:
                tracer = _Tracer(inputs, begin=reads.clear)
                graph = tracer.trace(module)
        except Exception as error:  # whatever a user's forward raises when it gets a stand-in for a tensor
            return f"forward cannot be traced: {type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"
        if tracer.refused:
            return f"forward cannot be traced: {tracer.refused}"
        for inner, state in before.items():
            for name in state.changes(vars(inner)):
                if name != "training":
                    return f"forward changes {'.'.join(filter(None, ('self', paths[inner], name)))}"
        if not _same_rng(rng, _rng_state()):
            return "forward draws random numbers outside the graph"
        notes = [
            Note(path, name, Kept(attribute(inner, name)))
            for inner, path in paths.items()
            for name in sorted(reads.get(inner, set()) - _UNNOTED)
            if not name.startswith("__")
        ]
        return Traced(graph, inputs, tuple(notes))
    finally:
        for state in before.values():
            state.restore()
        _set_rng(rng)


@contextmanager
def _watched(module: nn.Module, cls: Any) -> Iterator[dict[nn.Module, set[str]]]:
    """Note which attributes of `module`, for now of class `cls`, and of its submodules are read."""
    classes: dict[nn.Module, Any] = {
        inner: type(inner) for inner in module.modules() if not isinstance(inner, torch.jit.ScriptModule)
    }
    reads: dict[nn.Module, set[str]] = {}

    @cache
    def watched(base: Any) -> Any:  # Any: to mypy no type[Module] is hashable
        class Watched(base):
            def __getattribute__(self, name: str) -> Any:
                reads.setdefault(self, set()).add(name)
                return super().__getattribute__(name)

        return Watched

    try:
        for inner, own in classes.items():
            if inner is not module:
                with suppress(Exception):  # whatever a metaclass or an __init_subclass__ raises
                    inner.__class__ = watched(own)
        module.__class__ = watched(cls)
        yield reads
    finally:
        for inner, own in classes.items():
            inner.__class__ = own


class _Tracer(fx.Tracer):
    """`begin` is called just before the forward. `refused`: what it asked that has no answer, even where it caught that
    error itself.
    """

    def __init__(self, inputs: tuple[str, ...], begin: Callable[[], None]) -> None:
        super().__init__()
        self.proxy_buffer_attributes = True
        self.refused = ""
        self._inputs = inputs
        self._begin = begin
        self._grad_mode = _grad_mode()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        def forward(*args: Any) -> Any:
            self._begin()
            return root_fn(*args)

        return forward, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self._inputs)]

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.refused = "TraceError: branches on a value"
        return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        self.refused = "TraceError: iterates over a value"
        return super().iter(obj)

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        if _grad_mode() != self._grad_mode:
            raise RuntimeError("switches grad mode")
        return super().create_proxy(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        attributes = len(vars(self.root))
        arg = super().create_arg(a)
        if isinstance(a, Tensor) and len(vars(self.root)) > attributes:  # where torch.fx puts what it finds nowhere
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
            if any(step.opname == "LOAD_GLOBAL" and step.argval == "type" for step in dis.get_instructions(code)):
                names.add("type()")  # x.type(...) is another thing
            for name in code.co_names:
                names.add(name)
                todo.extend(vars(owner).get(name) for owner in cls.__mro__)
                todo.append(function.__globals__.get(name))
    return frozenset(names)


reachable_names: Callable[[Any], frozenset[str]] = lru_cache(1024)(_reachable_names)


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
