"""`fuse` and `unfuse`: give the modules that hold runs a forward that fuses them.

A rewritten module gets a subclass of its own class with the same name, as `torch.nn.utils.parametrize` does it, and
nothing else: its submodules, parameters, buffers and hooks stay as they are. So `unfuse` only gives the class back.
"""

import functools
import linecache
import zlib
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from itertools import repeat
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import fx, is_grad_enabled, nn
from torch.compiler import is_compiling

from convpool import torch_private
from convpool.fusion.chain import Layer, run_chain
from convpool.fusion.find import Found, Link, Survey, original_class, runs_in_order
from convpool.fusion.trace import Note, Traced
from convpool.planning import chosen_backend

# Of a rewritten instance:
_FORWARDS = "_convpool_forwards"  # its traced forwards by training mode
_IDLE = "_convpool_idle"  # the calls in which its own forward does, without a look at the layers: see `_keep_idle`
_IDLE_CALLS = 64  # until the next look: a 64th of its 0.1 to 0.3 ms is lost in a call's other noise


class Forward(NamedTuple):
    """A module's forward in one mode, with its runs fused; `layers` if it is nothing but one layer after another.

    `code` returns the output, and of each chain whether it was idle (see `run_chain`).
    """

    code: Callable[..., tuple[Any, tuple[bool, ...]]]
    inputs: tuple[str, ...]
    notes: tuple[Note, ...]
    layers: tuple[Layer | str, ...] | None  # submodules by their path

    def holds(self, module: nn.Module) -> bool:
        """Whether what may have decided the way through the forward is still as it was."""
        return all(note.holds(module) for note in self.notes)

    def takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether these are the arguments that were recorded as tensors, and all of them."""
        if len(args) + len(kwargs) != len(self.inputs) or any(name not in self.inputs for name in kwargs):
            return False
        return all(arg is not None for arg in (*args, *kwargs.values()))


def fuse(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """`model` with conv2d -> [BatchNorm2d] -> ReLU -> max-pool computed as one op: same values, same gradients.

    Parameters, buffers, state_dict, submodules and hooks stay what they are; only the forward of the smallest modules
    that hold such runs changes. What cannot be fused stays as it is; `fusion_report` says why.

    Args:
        model: any module; nothing is traced that torch.fx cannot follow.
        inplace: rewrite `model` itself instead of a deep copy.

    Raises:
        TypeError: `model` is not an nn.Module, or is a ScriptModule, whose code cannot be rewritten.
    """
    checked("fuse", model)
    if not inplace:
        model = deepcopy(model)
    for module in model.modules():
        _restore(module)
    survey = Survey(model)
    chosen: set[nn.Module] = set()
    for owner in survey.owners():
        for found in _fusable(survey, owner):
            crossed = {owner.get_submodule(path) for link in found.links for path in link.crossed}
            chosen |= {owner, *(module for module in crossed if not runs_in_order(module))}
    for module, forwards in {module: _forwards(survey, module) for module in chosen}.items():
        _rewrite(module, forwards)
    return model


def unfuse(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The model as it was before `fuse`, with the parameters it has now.

    Raises:
        TypeError: `model` is not an nn.Module, or is a ScriptModule.
        ValueError: a rewritten module's class was derived from since (by parametrize or FSDP): undo that first.
    """
    checked("unfuse", model)
    if not inplace:
        model = deepcopy(model)
    for name, module in model.named_modules():
        _restore(module)
        if is_fused(module):
            raise ValueError(f"the class of {name or 'the model'} was derived from after fuse: {type(module).__name__}")
    return model


def checked(function: str, model: nn.Module) -> None:
    """Refuse what no function of this package can look into."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"{function} takes an nn.Module, got a ScriptModule: use the module it was made from")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function} takes an nn.Module, got {type(model).__name__}")


def is_fused(module: nn.Module) -> bool:
    """Whether this very module has a rewritten forward."""
    return hasattr(type(module), "convpool_base")


def _restore(module: nn.Module) -> None:
    if original_class(module) is not type(module):
        module.__class__ = original_class(module)
        vars(module).pop(_FORWARDS, None)  # a slice of a rewritten nn.Sequential has none: it was made from the class
        vars(module).pop(_IDLE, None)


def _rewrite(module: nn.Module, forwards: dict[bool, Forward]) -> None:
    with suppress(Exception):  # whatever a metaclass or an __init_subclass__ raises: such a class stays as it is
        cls = _fused_class(type(module))
        vars(module)[_FORWARDS] = forwards
        module.__class__ = cls


def _fusable(survey: Survey, module: nn.Module) -> list[Found]:
    return [found for mode in (True, False) for found in survey.found(module, mode) if not found.misfit]


def _forwards(survey: Survey, module: nn.Module) -> dict[bool, Forward]:
    if runs_in_order(module):
        return {}  # its children are its layers, at every call
    forwards = {}
    for mode in (True, False):
        traced = survey.traced(module, mode)
        if isinstance(traced, Traced):
            links = survey.layers(module, mode)
            layers = None if links is None else tuple(x.layer if isinstance(x.layer, tuple) else x.path for x in links)
            found = [found for found in survey.found(module, mode) if not found.misfit]
            code = _compiled(_with_chains(traced.graph, found), original_class(module))
            forwards[mode] = Forward(code, traced.inputs, traced.notes, layers)
    return forwards


def _with_chains(graph: fx.Graph, found: list[Found]) -> fx.Graph:
    """A copy of the graph in which one `run_chain` stands for each span of links, at the place of its first.

    It returns what `Forward.code` does.
    """
    spans: list[list[Link]] = []
    for run in found:
        if spans and run.span[0] in spans[-1]:  # one submodule ends a run and begins the next
            spans[-1] += [link for link in run.span if link not in spans[-1]]
        else:
            spans.append(list(run.span))
    rewritten = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = rewritten.output(rewritten.graph_copy(graph, copies))
    idle = []
    for span in spans:
        nodes = [copies[link.node] for link in span if link.node is not None]
        with rewritten.inserting_before(nodes[0]):
            layers = tuple(x.layer if isinstance(x.layer, tuple) else rewritten.get_attr(x.path) for x in span)
            chain = rewritten.call_function(run_chain, (nodes[0].args[0], layers))
            y, was_idle = (rewritten.call_function(getitem, (chain, i)) for i in (0, 1))
        nodes[-1].replace_all_uses_with(y)
        idle.append(was_idle)
        for node in reversed(nodes):
            rewritten.erase_node(node)
    output.args = ((output.args[0], tuple(idle)),)
    return rewritten


def _compiled(graph: fx.Graph, cls: type[nn.Module]) -> Callable[..., Any]:
    """The graph as a Python function of the module and its inputs."""
    code = graph.python_code("self")
    name = f"<{cls.__qualname__}.forward as fused by convpool, {zlib.crc32(code.src.encode()):08x}>"
    linecache.cache[name] = len(code.src), None, code.src.splitlines(keepends=True), name  # tracebacks show the lines
    namespace = dict(code.globals)
    exec(compile(code.src, name, "exec"), namespace)
    return namespace["forward"]


def _keep_idle(module: nn.Module, x: Any) -> None:
    """Note for the module in which calls its own forward does: in this mode, with an input like x, and how many.

    What the note does not say (a norm frozen alone, a layer replaced) costs speed at most, until the calls are up.
    There is none where torch cannot tell what is like x.
    """
    alike = torch_private.alike((x,))
    if alike is not None:
        mode = module.training, is_grad_enabled(), chosen_backend.get()
        vars(module)[_IDLE] = mode, alike, repeat(True, _IDLE_CALLS)


def _derived(base: Any) -> Any:
    """`base` with a fusing forward, under the same name; see `fuse`."""

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() or len(args) != 1 or kwargs:
            return look(self, *args, **kwargs)[0]
        note = self.__dict__.get(_IDLE)
        if note is not None:  # in few steps: kernels evict Python's data from the caches, and then each takes 1 to 5 us
            mode, alike, calls = note
            now = self.training, is_grad_enabled(), chosen_backend.get()
            if now == mode and alike(*args) and next(calls, False):
                return base.forward(self, *args)
        y, idle = look(self, *args)
        if idle:
            _keep_idle(self, *args)
        return y

    def forward_look(self: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        fused = vars(self).get(_FORWARDS, {}).get(self.training)
        if fused is not None and fused.takes(args, kwargs) and fused.holds(self):
            y, idle = fused.code(self, *args, **kwargs)
            return y, all(idle)
        return base.forward(self, *args, **kwargs), False

    def sequential_look(self: Any, input: Any) -> tuple[Any, bool]:
        return run_chain(input, list(self))

    def convpool_layers(self: nn.Module) -> list[Layer] | None:
        """The layers that calling this module calls in order, if it does no more than that."""
        fused = vars(self).get(_FORWARDS, {}).get(self.training)
        if fused is None or fused.layers is None or not fused.holds(self):
            return None
        return [self.get_submodule(layer) if isinstance(layer, str) else layer for layer in fused.layers]

    def sequential_layers(self: nn.Sequential) -> list[Layer] | None:
        return list(self)

    def extra_repr(self: nn.Module) -> str:
        return "\n".join(filter(None, [base.extra_repr(self), "fused by convpool"]))

    def __prepare_scriptable__(self: nn.Module) -> nn.Module:
        """What torch.jit.script asks a module for; it would look up the names in base's forward in this file."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {base.__name__} as fused by convpool: "
            "call convpool.unfuse(model) first, and fuse what is not scripted"
        )

    def __reduce_ex__(self: Any, protocol: int) -> Any:
        vars(self).pop(_IDLE, None)  # torch's answer whether an input is alike has no copy
        reduced = base.__reduce_ex__(self, max(protocol, 2))
        if reduced[0].__name__ != "__newobj__":  # a class that builds itself, as GraphModule, builds the unfused module
            return reduced
        _, args, state, *_ = reduced
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if name != _FORWARDS}
        return _blank, (base, *args[1:]), state

    def __setstate__(self: nn.Module, state: dict[str, Any]) -> None:
        base.__setstate__(self, state)
        vars(self)[_FORWARDS] = _forwards(Survey(self), self)

    def __deepcopy__(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        copied = base.__deepcopy__(self, memo)
        _restore(copied)  # which is fused where base copies by type(self)
        _rewrite(copied, _forwards(Survey(copied), copied))
        return copied

    in_order = base.forward is nn.Sequential.forward
    look = sequential_look if in_order else forward_look
    namespace: dict[str, Any] = {
        "convpool_base": base,
        "convpool_layers": sequential_layers if in_order else convpool_layers,
        "forward": forward,
        "extra_repr": extra_repr,
        "__prepare_scriptable__": __prepare_scriptable__,
        "__reduce_ex__": __reduce_ex__,
        "__setstate__": __setstate__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    if hasattr(base, "__deepcopy__"):
        namespace["__deepcopy__"] = __deepcopy__
    return type(base)(base.__name__, (base,), namespace)


_fused_class: Callable[[Any], Any] = functools.lru_cache(256)(_derived)  # one class for all instances of a class


def _blank(base: Any, *args: Any) -> nn.Module:
    """A rewritten module without its state, which unpickling or deepcopy then sets."""
    return base.__new__(_fused_class(base), *args)
