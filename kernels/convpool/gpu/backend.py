"""The backend `triton` as the planner sees it: what it serves, by which plan, and why. Imports no Triton."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from convpool.geometry import MAX_WINDOW, Geometry
from convpool.protocol import Needs, Plan

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton decides: once, when a kernel is defined


class TritonBackend:
    name = "triton"

    def unavailable(self) -> str | None:
        return None

    def serves(self, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Plan | str:
        return Plan("triton", "fused", "", "")

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: Plan, with_code: bool
    ) -> tuple[Tensor, Tensor]:
        from convpool.gpu import launch

        return launch.forward(x, weight, bias, geometry, plan, with_code)

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: Plan, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        from convpool.gpu import launch

        return launch.backward(dy, code, x, weight, geometry, plan, needs)


BACKEND = TritonBackend()
