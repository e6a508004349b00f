"""What a backend is: the seam between the op and the kernels that compute it."""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from convpool.geometry import Geometry

Needs: TypeAlias = tuple[bool, bool, bool]  # which of dx, dw, db are asked for

BAD_CODES = "backward needs its winners as the forward pass left them: a saved code names no position of its window"


@dataclass(frozen=True)
class Plan:
    """How one call is computed, and why; `str(plan)` is the sentence that `explain` shows.

    `keeps_codes`: between forward and backward only x, weight and one byte per pooled output stay alive.
    `profitable`: whether `auto` should take it, by the backend's own written rule; one that was named serves anyway.
    """

    backend: str
    plan: Literal["fused", "split", "reference", "plain"]
    kernel: str
    reason: str
    keeps_codes: bool = True
    profitable: bool = True

    def __str__(self) -> str:
        kept = "keeps one byte per pooled output" if self.keeps_codes else "keeps what torch's layers keep"
        return f"{self.backend}, {self.plan} plan, {self.kernel}: {self.reason} ({kept})"


class Backend(Protocol):
    """Kernels behind one name. Every tensor is batched (4-d); shapes are those of `Geometry`."""

    name: str

    def unavailable(self) -> str | None:
        """Why the backend cannot run in this process, or None."""
        ...

    def serves(self, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Plan | str:
        """The plan for a call, or in words why there is none. Must not depend on anything but its arguments."""
        ...

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: Plan, with_code: bool
    ) -> tuple[Tensor, Tensor]:
        """y and its winners, as `layout.new_output` and `new_code` allocate them; x and weight may have any strides."""
        ...

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: Plan, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dx, dw, db, as `layout.new_gradients` allocates them; dy has code's strides; x is given if dw is needed.

        The tensors' sizes, types and memory are checked (`saved.check`), what stands in code is not: a code that names
        no conv output raises RuntimeError(BAD_CODES) on CPUs, and counts as dead on GPUs, where to ask is to wait.
        """
        ...
