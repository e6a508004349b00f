"""What the proofs of the op's numbers share: the backends that take part, and a call with all its results."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from convpool import planning, registry
from convpool.protocol import ORDINARY, Plan
from convpool.testing.cases import CASES, Case, by_name

Layer: TypeAlias = Callable[..., Tensor]  # with the tensors of `run` under their names, and momentum and eps

_WIDE = 300  # K: the moments of wider patches are too large a matrix to be quick

# Every geometry; a batch without images has no statistics.
NORMALISED = tuple(
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.geometry.reduction > _WIDE else [])
    for case in CASES
    if case.batch
)


def refusal(backend: str, case: Case, dtype: torch.dtype) -> str | None:
    """Why the backend does not normalise the case's conv output by its own statistics, or None."""
    found = planning.normalised(registry.backend(backend), case.geometry, dtype, torch.device("cpu"), ORDINARY)
    return None if isinstance(found, Plan) else found


def on_backends(dtype: torch.dtype) -> pytest.MarkDecorator:
    """Run the test, which takes `backend`, by each that serves batch statistics in that type; by `reference` with the
    slow tests where another one does."""
    names = [name for name in registry.backend_names() if not refusal(name, by_name("cnn-1"), dtype)]
    slow = {"reference"} if len(names) > 1 else set()
    backends = [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]
    return pytest.mark.parametrize("backend", backends, indirect=True)


def run(layer: Layer, tensors: Mapping[str, Tensor], dy: Tensor, **norm: Any) -> dict[str, Tensor]:
    """y, the running statistics that the call leaves, and the gradients of `tensors` for dy.

    Args:
        tensors: x and weight, and where there are any bias, gamma and beta.
        norm: momentum and eps.
    """
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    channels = torch.arange(tensors["weight"].shape[0], dtype=tensors["x"].dtype)
    running = {"running_mean": channels.sin(), "running_var": 1.5 + channels.cos()}
    y = layer(**dict.fromkeys(("bias", "gamma", "beta")) | leaves, **running, **norm)
    grads = torch.autograd.grad(y, tuple(leaves.values()), dy.to(y.dtype))
    return {"y": y.detach(), **running, **{f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}}


def double(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() for name, t in tensors.items()}


def error(got: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest element expected.

    Where all expected ones are next to nothing, as they are what rounding left of 0, 1e-3 stands for the largest.
    """
    assert got.shape == expected.shape
    assert got.isfinite().all()
    return (got.double() - expected).abs().max().item() / max(expected.abs().max().item(), 1e-3)
