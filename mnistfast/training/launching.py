"""How the steps of a training are launched: each called, or recorded once as a graph of the device's work and replayed.

A GPU does a small network's step in tens of microseconds, for whose launches Python takes several hundred. A replay is
one launch. Called and replayed steps are the same function.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from convpool import use_backend
from convpool.module import is_hooked
from convpool.planning import requested_backend
from convpool.registry import AUTO, AUTO_REPLAYED
from mnistfast import devices
from mnistfast.options.learning import LearnConfig
from mnistfast.training.optimizers import capturable
from mnistfast.training.ranks import Ranks
from mnistfast.training.step import Learner, take_step

# A batch size of fewer steps is called: three steps of warming up and the recording take as long as four.
LEAST = 8
_WARM_UP = 3  # steps: libraries choose, Triton compiles, the optimiser's state comes into being


class Recording(Protocol):
    """A recorded step."""

    def replay(self) -> None:
        """Does it again, with what the tensors hold by then."""


Record = Callable[[Callable[[], None]], Recording]


class Launcher:
    """Launches the steps of a training.

    Attributes:
        learner: what takes the steps.
        obstacle: why steps are called that were to be replayed, in words, or "".
        seconds: what warming up and recording took.
    """

    def __init__(self, learner: Learner, batches: Counter[int], record: Record | None, obstacle: str = "") -> None:
        """Prepares for a training.

        Args:
            learner: of the attribute.
            batches: how many steps have a batch of which size.
            record: makes a recording of a step that is warmed up, which may take it or not; None: steps are called.
            obstacle: why, where it is worth saying.
        """
        self.learner, self._record, self.obstacle = learner, record, obstacle
        self._worth = [size for size, steps in batches.items() if steps >= LEAST] if record else []
        self._recordings: dict[int, Recording] = {}
        self._learning: list[bool] = []
        self.seconds = 0.0

    @property
    def to_replay(self) -> bool:
        """Whether steps are to be replayed, as far as one knows."""
        return self._record is not None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes whose steps are replayed."""
        return tuple(self._recordings)

    @property
    def words(self) -> str:
        """How steps are launched, for a report."""
        if self.sizes:
            sizes = " and ".join(map(str, self.sizes))
            return f"replayed, in batches of {sizes}; warming up and recording took {self.seconds:.2f} s"
        return f"called one by one: {self.obstacle}" if self.obstacle else "called one by one"

    def prepare(self) -> None:
        """Records the steps that are worth it, unless that is done; what learns has not changed by it."""
        learning = _what_learns(self.learner.model)
        if learning != self._learning:  # an epoch at which more layers begin to learn, or norms keep their statistics
            self.forget()
        self._learning = learning
        if self._record and not self._recordings:
            began = time.perf_counter()
            try:
                for size in self._worth:
                    self._recordings[size] = self._recorded(self._record, size)
            except (RuntimeError, NotImplementedError) as failure:  # of the device's libraries, whatever they cannot do
                self.forget()
                self._record, self.obstacle = None, f"it cannot be recorded: {str(failure).splitlines()[0]}"
            self.seconds += time.perf_counter() - began

    def forget(self) -> None:
        """Lets `prepare` record anew: other tensors have come into the place of those that recordings use."""
        self._recordings.clear()

    def take(self, batch: int) -> None:
        """Takes the step that comes next, of `batch` images."""
        recording = self._recordings.get(batch)
        if recording is None:
            take_step(self.learner, batch)
        else:
            recording.replay()

    def _recorded(self, record: Record, batch: int) -> Recording:
        """Returns a recording of a step, and leaves all that a step changes as it was."""
        before = list(self.learner.state())
        device, kept = before[0].device, {id(tensor) for tensor in before}
        values, generators = [tensor.detach().clone() for tensor in before], rng_state(device)
        asked = requested_backend()

        @torch.no_grad()
        def put_back() -> None:
            for tensor, value in zip(before, values, strict=True):
                tensor.copy_(value)
            for tensor in self.learner.state():
                if id(tensor) not in kept:  # the optimiser's, which begins with zeros
                    tensor.zero_()
            set_rng_state(generators, device)

        try:
            with use_backend(AUTO_REPLAYED if asked == AUTO else asked):
                with _beside(device):
                    for _ in range(_WARM_UP):  # each as the first, for the epoch or the training may have fewer left
                        self.learner.cursor.move(0, 0)
                        take_step(self.learner, batch)
                        put_back()
                self.learner.cursor.move(0, 0)
                with capturable(self.learner.optimizer):
                    return record(partial(take_step, self.learner, batch))
        finally:
            put_back()


def make_launcher(config: LearnConfig, learner: Learner, batches: Counter[int], ranks: Ranks) -> Launcher:
    """Returns what launches the steps of a training by `config`, as its `graph` asks for and the device can.

    Raises:
        DeviceError: it is to replay them without a GPU.
    """
    device = learner.rates.lr.device
    devices.check_graph(config.graph, device)
    if config.graph == "off" or not devices.can_replay(device):
        return Launcher(learner, batches, None)
    obstacle = _obstacle(config, learner.model, ranks)
    return Launcher(learner, batches, None if obstacle else CudaGraphs().record, obstacle)


def _obstacle(config: LearnConfig, model: nn.Module, ranks: Ranks) -> str:
    if config.compile:
        return "--compile launches in its own way"
    if ranks.world > 1:
        return "several processes exchange their gradients within it"
    hooked = [name for name, module in model.named_modules() if is_hooked(module)]
    return f"{hooked[0] or 'the model'} has a hook, which is Python" if hooked else ""


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Works on another stream of a GPU, as PyTorch's notes on CUDA graphs ask for before a recording."""
    if device.type != "cuda":
        yield
        return
    beside, present = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    beside.wait_stream(present)
    with torch.cuda.stream(beside):
        yield
    present.wait_stream(beside)


class CudaGraphs:
    """Records steps as CUDA graphs, which share their memory: no two of them run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Callable[[], None]) -> Recording:
        """Records `step`, which is warmed up, and does not take it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        return graph


def _what_learns(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()] + [m.training for m in model.modules()]


def rng_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Returns the state of torch's generators that a step draws from: the CPU's, and a GPU's own."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_rng_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Sets what `rng_state` returned; of a GPU's, where `device` is one."""
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda, device)
