"""Where a model holds conv -> [norm] -> ReLU -> max-pool, seen from each module whose own forward holds it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from convpool.fusion.chain import Call, Layer, MaxPool2d, ReLU, Run, run_at
from convpool.fusion.trace import Traced, reachable_names, trace
from convpool.module import is_hooked


@dataclass(frozen=True)
class Link:
    """One step of a chain: a layer applied to the one before it.

    `path`: a submodule's path under the owner; of a function, its name.
    `node`: its place in the owner's graph; None where the owner is an nn.Sequential.
    `also_read_by`: who reads its output besides the next link.
    `crossed`: the modules, from the owner inwards, whose forward holds this link, when that is not the owner's own.
    """

    layer: Layer
    path: str
    node: fx.Node | None = None
    also_read_by: str | None = None
    crossed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A run: the links it is made of, and the span of its owner's own links (submodules as a whole) that hold it."""

    owner: str
    run: Run
    links: tuple[Link, ...]
    span: tuple[Link, ...]
    misfit: str | None
    obstacle: str | None

    @property
    def reason(self) -> str | None:
        """Why the run is not fused at the moment, or None."""
        return self.misfit or self.obstacle

    @property
    def names(self) -> tuple[str, ...]:
        prefix = f"{self.owner}." if self.owner else ""
        return tuple(link.path if isinstance(link.layer, tuple) else prefix + link.path for link in self.links)


class Survey:
    """What is found in `model`, with every module traced at most once in each mode.

    A run's input is taken to have a gradient if a parameter of a module before it, in the model's order, learns.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self._traces: dict[tuple[nn.Module, bool], Traced | str] = {}
        learning = [any(p.requires_grad for p in module.parameters(recurse=False)) for module in self.names]
        first = learning.index(True) if True in learning else len(learning)
        self._after_learning = set(list(self.names)[first + 1 :])

    def owners(self) -> Iterator[nn.Module]:
        """The modules whose forward may hold a run: those above convolutions and pools that torch.fx may look into."""
        for module in self.names:
            if runs_in_order(module) or _is_users(module):
                inner = list(module.modules())
                if any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in inner) and any(map(_pools, inner)):
                    yield module

    def traced(self, module: nn.Module, training: bool) -> Traced | str:
        key = module, training
        if key not in self._traces:
            self._traces[key] = trace(module, original_class(module), training)
        return self._traces[key]

    def found(self, owner: nn.Module, training: bool) -> list[Found]:
        """The runs that `owner`'s own forward holds in that mode, fusable or not."""
        return [found for chain in self._chains(owner, training) for found in self._found_in(owner, chain, training)]

    def layers(self, module: nn.Module, training: bool) -> list[Link] | None:
        """The links that a module's forward consists of, if it only calls one layer after another."""
        if runs_in_order(module):
            return [Link(layer, name) for name, layer in _children(module)]
        if not _is_users(module) or not _is_called_plainly(module) or next(module.children(), None) is None:
            return None
        traced = self.traced(module, training)
        if isinstance(traced, str) or len(traced.inputs) != 1:
            return None
        chains = _graph_chains(traced.graph, module)
        steps = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
        output = next(node for node in traced.graph.nodes if node.op == "output")
        if len(chains) != 1 or len(chains[0]) != len(steps) or output.args[0] is not steps[-1]:
            return None
        if any(isinstance(link.layer, Call) or link.also_read_by for link in chains[0]):
            return None
        return chains[0]

    def _chains(self, owner: nn.Module, training: bool) -> list[list[Link]]:
        if runs_in_order(owner):
            return [self.layers(owner, training) or []]
        traced = self.traced(owner, training)
        return [] if isinstance(traced, str) else _graph_chains(traced.graph, owner)

    def _found_in(self, owner: nn.Module, chain: list[Link], training: bool) -> Iterator[Found]:
        flat = [(link, i) for i, outer in enumerate(chain) for link in self._expanded(outer, training)]
        layers = [link.layer for link, _ in flat]
        for start in range(len(flat)):
            run = run_at(layers, start)
            if run is None:
                continue
            links = tuple(link for link, _ in flat[start : start + len(run.layers)])
            span = tuple(chain[flat[start][1] : flat[start + len(run.layers) - 1][1] + 1])
            if len(span) == 1:
                continue  # a submodule holds all of it
            misfit = run.misfit() or _read_elsewhere(links)
            dx = run.conv in self._after_learning
            obstacle = None if misfit else self._hooked(owner, links) or run.obstacle(dx)
            yield Found(self.names[owner], run, links, span, misfit, obstacle)

    def _expanded(self, link: Link, training: bool) -> list[Link]:
        inner = self.layers(link.layer, training) if isinstance(link.layer, nn.Module) else None
        if not inner:
            return [link]
        flat = []
        for step in inner:
            path = step.path if isinstance(step.layer, tuple) else f"{link.path}.{step.path}"
            flat += self._expanded(Link(step.layer, path, crossed=(*link.crossed, link.path)), training)
        flat[-1] = replace(flat[-1], also_read_by=link.also_read_by)
        return flat

    def _hooked(self, owner: nn.Module, links: tuple[Link, ...]) -> str | None:
        for link in links:
            for path in (*link.crossed, *(() if isinstance(link.layer, tuple) else (link.path,))):
                if is_hooked(owner.get_submodule(path)):
                    return f"a hook on {path}"
        return None


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that the module had before it was rewritten."""
    return vars(type(module)).get("convpool_base", type(module))


def runs_in_order(module: nn.Module) -> bool:
    """Whether calling the module is calling its children in order, nn.Sequential's own way."""
    cls = original_class(module)
    return issubclass(cls, nn.Sequential) and cls.forward is nn.Sequential.forward and _is_called_plainly(module)


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All children with their names; `named_children` names one that is there twice only once."""
    for name, inner in module.named_modules(remove_duplicate=False):
        if name and "." not in name:
            yield name, inner


def _is_called_plainly(module: nn.Module) -> bool:
    """Whether calling the module is no more than its hooks and its forward."""
    return type(module).__call__ is nn.Module.__call__


def _is_users(module: nn.Module) -> bool:
    """Whether a user wrote the module's forward: torch's layers, containers and wrappers, and ours, are left alone."""
    cls = original_class(module)
    if isinstance(module, torch.jit.ScriptModule) or cls.forward is nn.Module.forward:
        return False
    home = cls.forward.__module__ or ""  # what torch.fx generates has none
    return not home.startswith(("torch.", "convpool."))


def _pools(module: nn.Module) -> bool:
    """Whether the module is a pool, or its forward names one."""
    cls = original_class(module)
    return "Pool" in cls.__name__ or any("pool" in name for name in reachable_names(cls))


def _read_elsewhere(links: tuple[Link, ...]) -> str | None:
    for link in links[:-1]:
        if link.also_read_by:
            return f"the output of {link.path} is also read by {link.also_read_by}"
    return None


def _graph_chains(graph: fx.Graph, owner: nn.Module) -> list[list[Link]]:
    """The lines of one-tensor steps in a graph; where several read one output, the first of them continues its line."""
    layers = {node: layer for node in graph.nodes if (layer := _layer(node, owner)) is not None}
    following = {node: reader for node in layers if (reader := next((u for u in node.users if u in layers), None))}
    continued = set(following.values())
    chains = []
    for start in layers:
        if start not in continued:
            chain, node = [], start
            while node is not None:
                reader = following.get(node)
                others = ", ".join(_describe(user) for user in node.users if user is not reader) if reader else ""
                chain.append(Link(layers[node], _describe(node), node, others or None))
                node = reader
            chains.append(chain)
    return chains


def _layer(node: fx.Node, owner: nn.Module) -> Layer | None:
    """The node as a layer, if it maps one tensor to another without further tensors."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return None
    if not node.args or not isinstance(node.args[0], fx.Node) or len(node.all_input_nodes) != 1:
        return None
    if node.op == "call_module":
        return owner.get_submodule(str(node.target)) if len(node.args) == 1 and not node.kwargs else None
    return _relu(node) or _pool(node) or Call(_describe(node))


def _relu(node: fx.Node) -> ReLU | None:
    arguments = _bound(node, ["inplace"] if node.target is F.relu else [])
    if arguments is None:
        return None
    if node.target in (F.relu, torch.relu, "relu"):
        return ReLU(bool(arguments.get("inplace", False)))
    return ReLU(inplace=True) if node.target in (torch.relu_, "relu_") else None


def _pool(node: fx.Node) -> MaxPool2d | None:
    if node.target not in (F.max_pool2d, torch.max_pool2d):
        return None
    arguments = _bound(node, [*MaxPool2d._fields, "return_indices"])
    if arguments is None or arguments.pop("return_indices", False) or "kernel_size" not in arguments:
        return None
    if arguments.get("stride") in ((), []):
        arguments["stride"] = None
    return MaxPool2d(**arguments)


def _bound(node: fx.Node, names: Sequence[str]) -> dict[str, Any] | None:
    """The node's arguments after the tensor, by name; None if they do not go with the names."""
    if len(node.args) > 1 + len(names) or not node.kwargs.keys() <= set(names):
        return None
    return dict(zip(names, node.args[1:], strict=False)) | node.kwargs


def _describe(node: fx.Node) -> str:
    if node.op == "output":
        return "the module's output"
    if node.op in ("call_module", "call_method"):
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target)) if callable(node.target) else str(node.target)
