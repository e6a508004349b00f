"""`verify`: how far a fused model is from the one it came from, on an example."""

from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convpool.fusion.rewrite import checked
from convpool.torch_private import tree_leaves, tree_map


@dataclass(frozen=True)
class Difference:
    """One tensor compared: the largest absolute difference, and the largest absolute value of the original's layer.

    A layer's gradients share their scale, and its buffers theirs: before a norm a bias has a gradient of 0 but for
    rounding, which says nothing about itself.
    """

    mode: str
    name: str
    difference: float
    scale: float

    @property
    def relative(self) -> float:
        if self.difference == 0:
            return 0.0
        return self.difference / self.scale if self.scale else float("inf")


@dataclass(frozen=True)
class Differences:
    """What `verify` compared; `str()` gives the largest, relative to their scales."""

    rows: tuple[Difference, ...]

    @property
    def largest(self) -> Difference:
        return max(self.rows, key=lambda row: row.relative if row.relative == row.relative else float("inf"))

    def within(self, tolerance: float) -> bool:
        """Whether every tensor differs by at most `tolerance` times its scale. NaN is never within."""
        return all(row.relative <= tolerance for row in self.rows)

    def __str__(self) -> str:
        ranked = sorted(self.rows, key=lambda row: -row.relative)
        lines = [f"{row.relative:9.2e}  {row.mode:8}  {row.name}" for row in ranked[:10]]
        rest = [f"and {len(ranked) - 10} tensors that differ less"] if len(ranked) > 10 else []
        return "\n".join(["difference  mode      tensor (relative to its layer's largest value)", *lines, *rest])


def verify(model: nn.Module, fused: nn.Module, example: Any, *, dtype: torch.dtype | None = None) -> Differences:
    """Run both models on `example` in training and in eval mode, and compare outputs, buffers and every gradient.

    The loss behind the gradients is a fixed random weighting of all outputs. Both run on copies and from the same seed,
    so dropout drops the same elements and neither model changes.

    Args:
        model, fused: a model and what `fuse` made of it (or any model with the same parameters by name).
        example: a tensor, or the tuple of the model's arguments.
        dtype: compare in this type: both copies and the floating-point arguments are converted, the models that were
            given are left alone. None: as they are.

    Raises:
        TypeError: one of the two is not an nn.Module, or is a ScriptModule; dtype is not a floating-point type.
        ValueError: the two return other shapes, or have other parameter or buffer names.
    """
    checked("verify", model)
    checked("verify", fused)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating-point torch.dtype or None, got {dtype!r}")
    args = example if isinstance(example, tuple) else (example,)
    rows = []
    for training in (True, False):
        ours, theirs = _step(fused, args, training, dtype), _step(model, args, training, dtype)
        if ours.keys() != theirs.keys():
            raise ValueError(f"the models do not have the same tensors: {sorted(ours.keys() ^ theirs.keys())[:3]}")
        scales: dict[str, float] = defaultdict(float)
        for name, expected in theirs.items():
            if ours[name].shape != expected.shape:
                raise ValueError(f"{name} has shape {tuple(ours[name].shape)}, expected {tuple(expected.shape)}")
            scales[_layer(name, expected)] = max(scales[_layer(name, expected)], _largest(expected))
        for name, expected in theirs.items():
            gap, scale = _gap(ours[name], expected), scales[_layer(name, expected)]
            rows.append(Difference("training" if training else "eval", name, gap, scale))
    return Differences(tuple(rows))


def _step(model: nn.Module, args: tuple[Any, ...], training: bool, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Outputs, gradients and buffers of one forward and backward pass on a copy of the model."""

    def converted(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return converted(value).detach().clone().requires_grad_(value.is_floating_point())

    model = deepcopy(model).train(training)
    if dtype is not None:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = converted(tensor.data)  # `model.to` would make complex tensors real
    args = tree_map(leaf, args)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = [t for t in tree_leaves(model(*args)) if isinstance(t, Tensor) and t.is_floating_point()]
        generator = torch.Generator().manual_seed(0)
        loss = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs)
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward()
    tensors = {f"output {i}": t for i, t in enumerate(outputs)}
    inputs = {f"argument {i}": t for i, t in enumerate(tree_leaves(args)) if isinstance(t, Tensor)}
    for name, t in (inputs | dict(model.named_parameters())).items():
        if t.grad is not None:
            tensors[f"gradient of {name}"] = t.grad
    return tensors | dict(model.named_buffers())


def _layer(name: str, t: Tensor) -> str:
    """What shares a scale: a layer's gradients, its floating-point buffers; anything else is on its own."""
    return name.rpartition(".")[0] if "." in name and (t.is_floating_point() or t.is_complex()) else name


def _largest(t: Tensor) -> float:
    return t.detach().abs().double().nan_to_num().max().item() if t.numel() else 0.0


def _gap(ours: Tensor, expected: Tensor) -> float:
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = ours.detach().to(wide), expected.detach().to(wide)
    if a.numel() == 0:
        return 0.0
    same = (a == b) | (a.isnan() & b.isnan())  # infinities and NaN in the same places are no difference
    return torch.where(same, 0, a - b).abs().max().item()
