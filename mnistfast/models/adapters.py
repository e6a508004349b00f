"""What of a trained model fine-tuning trains: everything, the head, the last K layers, biases, or low-rank updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convpool.torch_private import BATCH_NORMS
from mnistfast.errors import UsageError
from mnistfast.models.zoo import Classifier

_FACTORS = ".parametrizations.weight."  # within the names that torch gives to a parametrised weight and its parts


class LowRank(nn.Module):
    """W -> W + B A, the low-rank update of Hu et al. 2022 ("LoRA"), for the weight W of a layer.

    A parametrisation: the layer, fused or not, gets the sum as its weight. B starts at zero, so nothing changes at
    first; A is drawn as torch draws a layer's weight. The update is not scaled: the learning rate does that.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        """Makes factors for `weight` (out, ...), of a rank not above that of the matrix (out, rest)."""
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        rank = min(rank, rows, columns)
        self.down = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight that the layer works with."""
        return _add(weight, self.up, self.down)


def _add(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Returns W + B A for the weight W (out, ...), B (out, rank) and A (rank, rest)."""
    return weight + (up @ down).view_as(weight)


class Tuning:
    """Which parameters learn, at which rate, from when on. This one: all, alike, from the start."""

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Returns the optimiser's groups; `lr_scale` of one is multiplied with the learning rate."""
        return [{"params": list(model.parameters()), "lr_scale": 1.0}]

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        """Prepares `model` for learning in `epoch`, counted from 0."""
        model.train()


@dataclass(frozen=True)
class FineTuning(Tuning):
    """A choice of parameters of a `Classifier`.

    Attributes:
        head: those that learn at the full rate from the start: all above the body.
        body: those of the body, by layer, from the last layer to the first; and of an old head that is to learn.
        lr_mult: the body's learning rate is this many times the head's.
        unfreeze_at: epochs, counted from 1, at each of which one more layer of the body begins to learn; at the last of
            them all that are left. Empty: all from the start.
    """

    head: Sequence[nn.Parameter]
    body: Sequence[Sequence[nn.Parameter]]
    lr_mult: float = 1.0
    unfreeze_at: tuple[int, ...] = ()

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Returns a group for the head and one for the body, where it learns at all."""
        body = [parameter for layer in self.body for parameter in layer]
        scaled = [(list(self.head), 1.0), (body, self.lr_mult)]
        return [{"params": parameters, "lr_scale": scale} for parameters, scale in scaled if parameters]

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        """Lets the layers learn whose turn has come; a norm whose scale does not learn keeps its statistics too."""
        begun = sum(epoch + 1 >= at for at in self.unfreeze_at)
        layers = len(self.body) if begun == len(self.unfreeze_at) else begun
        learning = {*self.head, *(parameter for layer in self.body[:layers] for parameter in layer)}
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in learning)
        model.train()
        for module in model.modules():
            if isinstance(module, BATCH_NORMS) and module.weight not in learning:
                module.eval()

    @property
    def trained(self) -> int:
        """How many numbers learn."""
        return sum(parameter.numel() for part in (self.head, *self.body) for parameter in part)


Layers = list[list[nn.Module]]  # of a body, the last one first: a module with weights, and the norms that follow it
Learning = list[list[nn.Parameter]]  # what learns of each of them


def _all(model: Classifier, layers: Layers, count: int) -> Learning:
    return [list(_own(layer)) for layer in layers]


def _none(model: Classifier, layers: Layers, count: int) -> Learning:
    return []


def _last(model: Classifier, layers: Layers, count: int) -> Learning:
    if count > len(layers) + 1:
        raise UsageError(f"--method last:{count}", f"{model.name} has {len(layers) + 1} layers, its head included")
    return [list(_own(layer)) for layer in layers[: count - 1]]


def _biases(model: Classifier, layers: Layers, count: int) -> Learning:
    return [[p for module in layer for p in (module.bias,) if p is not None] for layer in layers]  # type: ignore


def _low_rank(model: Classifier, layers: Layers, count: int) -> Learning:
    return [_with_factors(layer[0], count) for layer in layers]


# By the names of `options.methods`: what of a model's body learns, given its layers and the number after the colon. A
# function may change the model, and refuses numbers that it does not have layers for.
SELECTIONS: dict[str, Callable[[Classifier, Layers, int], Learning]] = {
    "full": _all,
    "head": _none,
    "last": _last,
    "bias": _biases,
    "lora": _low_rank,
    "scratch": _all,
}


def choose(
    model: Classifier,
    method: str,
    count: int = 0,
    *,
    lr_mult: float = 1.0,
    unfreeze_at: tuple[int, ...] = (),
    old_head: int = 0,
) -> FineTuning:
    """Makes `model` ready for `method` and returns what of it learns.

    Args:
        model: for `lora` the weights of its body's layers are parametrised by `LowRank` in place.
        method: of `SELECTIONS`.
        count: the layers of `last`, the new head included, or the rank of `lora`.
        lr_mult, unfreeze_at: of `FineTuning`.
        old_head: which of the old heads learns too, 0 for none.

    Raises:
        UsageError: there are not so many layers, or not so many to unfreeze.
    """
    body = [layer for layer in SELECTIONS[method](model, _layers(model), count) if layer]
    if len(unfreeze_at) > len(body):
        what = f"--unfreeze-at names {len(unfreeze_at)} epochs"
        raise UsageError(what, f"--method {method} trains {len(body)} layers below the head")
    if old_head:
        body.append(list(model.old_heads[old_head - 1].parameters()))
    return FineTuning(list(model.head[model.cut :].parameters()), body, lr_mult, unfreeze_at)


def _layers(model: Classifier) -> Layers:
    body = [module for module in model.features.modules() if _parameters(module)]
    body += [module for module in model.head[: model.cut] if _parameters(module)]
    layers: Layers = []
    for module in body:
        if isinstance(module, BATCH_NORMS):
            layers[-1].append(module)
        else:
            layers.append([module])
    return layers[::-1]


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _own(layer: Sequence[nn.Module]) -> Iterator[nn.Parameter]:
    for module in layer:
        yield from _parameters(module)


def _with_factors(module: nn.Module, rank: int) -> list[nn.Parameter]:
    factors = LowRank(module.weight, rank)  # type: ignore[arg-type]
    parametrize.register_parametrization(module, "weight", factors)
    return list(factors.parameters())


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict as that of the plain model: every low-rank update is added to its weight.

    The same sum, in the same order of operations, as the layers work with: outputs do not change by a bit.
    """
    plain = {name: tensor for name, tensor in state.items() if _FACTORS not in name}
    for name, tensor in state.items():
        layer, found, part = name.partition(_FACTORS)
        if found and part == "original":
            up, down = (state[f"{layer}{_FACTORS}0.{factor}"] for factor in ("up", "down"))
            plain[f"{layer}.weight"] = _add(tensor, up, down)
    return plain


def merge(model: nn.Module) -> None:
    """Makes every low-rank update of `model` part of its weight, in place."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


def learning_names(model: Classifier, tuning: FineTuning) -> list[str]:
    """Returns the names in `model`, which may be parametrised, of the parameters that `tuning` lets learn."""
    learning = {parameter for part in (tuning.head, *tuning.body) for parameter in part}
    return [name for name, parameter in model.named_parameters() if parameter in learning]


def adapter(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Returns the `names` of `state`, by the plain model's names; an update of W is "W.up" and "W.down"."""
    return {name.replace(f"{_FACTORS}0.", ".weight."): state[name] for name in names}


def with_adapter(state: Mapping[str, Tensor], learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the plain model's `state` with what `adapter` returned put into it.

    Raises:
        KeyError: `learnt` has an update for a weight that is not there.
    """
    result = dict(state)
    for name, tensor in learnt.items():
        if name.endswith(".weight.down"):
            weight = name.removesuffix(".down")
            result[weight] = _add(result[weight], learnt[f"{weight}.up"], tensor)
        elif not name.endswith(".weight.up"):
            result[name] = tensor
    return result
