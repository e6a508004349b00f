"""Several processes that train one model together, as torchrun starts them. One process alone is a team of one.

Every batch is the one that a single process would take; each process learns from its slice of it. What is random is
drawn for the whole batch and sliced, so that the number of processes changes nothing but the order of some sums.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

CPU = torch.device("cpu")
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process' place among those that train together.

    Attributes:
        rank: which one this is, from 0; the first one judges, decides and writes.
        world: how many there are.
        local: which one on this machine, and so which GPU is its own.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> Ranks:
        """Returns what torchrun put into the environment, or a team of one where it did not start us."""
        return cls(*(int(os.environ.get(name, default)) for name, default in _VARIABLES.items()))

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connects the processes while the context lasts: gloo between CPUs, nccl between GPUs.

        What refers to the group, as a trainer does, must end before the context, or the group keeps gloo's threads. A
        thread takes Python's lock to let go of a tensor, and one that comes to it while Python shuts down ends the
        process with "terminate called without an active exception".
        """
        if self.world == 1:
            yield
            return
        # DDP imports it, too late: by then the group is the default of its functions, which would keep it for ever.
        import torch.distributed.nn  # noqa: F401

        # gloo beside nccl: small decisions are made between CPUs, where they do not wait for the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        try:
            yield
        finally:
            dist.destroy_process_group()
            time.sleep(_LETTING_GO)

    @property
    def first(self) -> bool:
        """Whether this process judges, decides and writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Returns this process' part of `count` rows; empty where there are fewer rows than processes."""
        return slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def team(self, model: nn.Module) -> nn.Module:
        """Returns `model` with gradients that are averaged over the processes."""
        if self.world == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum of every process' `values`."""
        if self.world == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Returns whether `flag` is set in any process, which so decide alike."""
        if self.world == 1:
            return flag
        found = torch.tensor(int(flag))
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def of_first(self, make: Callable[[], T]) -> T:
        """Returns to all processes what `make` returns in the first one, the only one to call it."""
        if self.world == 1:
            return make()
        made = [make() if self.first else None]
        dist.broadcast_object_list(made, device=CPU)
        return made[0]  # type: ignore[return-value]

    def after_first(self, make: Callable[[], T]) -> T:
        """Returns what `make` returns here, which is called when the first process is done with it: a download."""
        if self.world == 1:
            return make()
        if self.first:
            result = make()
        dist.barrier()
        return result if self.first else make()


# Seconds that gloo's threads get to let go of the last tensors where the model of the team outlives its group.
_LETTING_GO = 0.05
_VARIABLES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
