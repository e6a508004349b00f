"""A backend as a third party would write one: torch's layers, and the gradients of the op's own definition."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import convpool
from convpool.geometry import Geometry
from convpool.protocol import ORDINARY, Needs, Plan, Use
from convpool.torch_ops import ReferenceBackend


class OwnBackend(ReferenceBackend):
    """Serves float32 on every device, by one of two plans. `met` lists the plans of the calls, forward and backward."""

    def __init__(self, *, profitable: bool = True, profitable_replayed: bool = False) -> None:
        self.profitable, self.profitable_replayed, self.met = profitable, profitable_replayed, list[str]()

    def serves(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use = ORDINARY) -> Plan | str:
        if dtype != torch.float32:
            return f"dtype {dtype} is none of ours"
        plan = "narrow" if geometry.width < 16 else "wide"
        pays = self.profitable, self.profitable_replayed
        return Plan("own", plan, "it is ours", profitable=pays[0], profitable_replayed=pays[1])

    def kernels(self, x: Tensor, weight: Tensor, geometry: Geometry, plan: str, needs: Needs) -> tuple[str, ...]:
        return (f"{plan}_forward", *(["own_backward"] if any(needs) else []))

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str, with_code: bool
    ) -> tuple[Tensor, Tensor]:
        self.met.append(plan)
        return super().forward(x, weight, bias, geometry, plan, with_code)

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: str, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.met.append(plan)
        return super().backward(dy, code, x, weight, geometry, plan, needs)


@contextmanager
def own_backend(**pays: bool) -> Iterator[OwnBackend]:
    """Inside, `auto` asks it first for calls on CPUs; `pays` as of the class."""
    backend = OwnBackend(**pays)
    convpool.register_backend("own", lambda: backend, devices=("cpu",))
    try:
        yield backend
    finally:
        convpool.unregister_backend("own")
