"""What tests of measured choices share: a call, the key of it, and a table with one choice."""

import torch
from torch import Tensor

from convpool import planning
from convpool.choices import Choice, Choices, key
from convpool.geometry import Geometry, make_settings

CPU = torch.device("cpu")
OTHER = "torch/plain"  # what the rule does not take for the call below
SECONDS = {"cpu/fused": 6.3e-4, OTHER: 4.1e-4}


def tensors(batch: int = 2, **options: bool) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 1, 12, 12, **options), torch.randn(4, 1, 3, 3)


def key_of(x: Tensor, weight: Tensor, asked: str = "auto") -> str:
    geometry = Geometry.of(tuple(x.shape), tuple(weight.shape), make_settings(tuple(weight.shape[2:])))
    return key(geometry, x.dtype, x.device, planning.use_of(x, weight, requested=asked))


def table(plan: str = OTHER, call: str | None = None) -> Choices:
    return Choices({call or key_of(*tensors()): Choice(plan, SECONDS, "2026-11-27", "a processor")})
