"""The one way speed is measured: interleaved rounds in one process, medians with their spread.

Candidates take turns within each round, so that a change of clock or of neighbours meets all of them. On a CPU the wall
clock is read around repeated calls; on a GPU, where the calls can be replayed, events are, around a graph that holds
them. `candidates` gives the calls of a layer, if it is right.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

Call: TypeAlias = Callable[[], object]

_BLOCK_SECONDS = 2e-3  # of calls between two readings of the clock: its error and Python's loop vanish in it
_SLOW_SECONDS = 0.5  # of a call that is worth no second run before it is timed: what its first one did more is little
_LEAST_ROUNDS = 7


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median * 1e3:.3f} ms [{self.low * 1e3:.3f}, {self.high * 1e3:.3f}]"


class Race:
    """Candidates that take turns: each round runs a block of calls of every one of them.

    Attributes:
        samples: by candidate's name, seconds of one call, a sample for each round.
    """

    def __init__(
        self,
        calls: Mapping[str, Sequence[Call]],
        device: torch.device,
        *,
        replay: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Warm every candidate up, and choose how many calls make a block.

        Args:
            calls: by candidate's name, what to run: a sequence of equal calls, one for each copy of its inputs.
            device: where the calls compute.
            replay: on a GPU, time the replay of a graph of the calls, not the calls with what Python spends on them.
            clock: seconds since any moment; read where calls are timed by themselves.
        """
        self._device, self._replay, self._clock = device, replay, clock
        self._random = random.Random(0)
        self._blocks: dict[str, Block] = {}
        self.samples: dict[str, list[float]] = {}
        for name, sequence in calls.items():
            self.add(name, sequence)

    def add(self, name: str, calls: Sequence[Call]) -> None:
        """Let one more candidate take part; what was measured without it does not count."""
        if self._device.type == "cuda" and self._replay:
            self._blocks[name] = _replayed_block(calls)
        else:
            self._blocks[name] = _called_block(calls, self._device, self._clock)
        self.samples = {name: [] for name in self._blocks}

    def calls(self, name: str) -> int:
        """How many calls one turn of the candidate makes."""
        return self._blocks[name].calls

    def foretold(self, name: str) -> float:
        """Seconds of one of the candidate's calls, as far as the warm-up tells."""
        return self._blocks[name].seconds / self._blocks[name].calls

    def turn(self, name: str) -> None:
        """Run one block of the candidate."""
        self.samples[name].append(self._blocks[name].run())

    def others(self, name: str) -> None:
        """Run a block of every candidate but this one."""
        for other in self._shuffled():
            if other != name:
                self.turn(other)

    def rounds(self, seconds: float, least: int = _LEAST_ROUNDS) -> int:
        """How many rounds fill this time, as far as the warm-up tells."""
        return max(least, round(seconds / sum(block.seconds for block in self._blocks.values())))

    def run(self, seconds: float, least: int = _LEAST_ROUNDS) -> dict[str, Timing]:
        """Go round for this long, `least` rounds at least, and sum up."""
        for _ in range(self.rounds(seconds, least)):
            for name in self._shuffled():
                self.turn(name)
        return self.timings()

    def _shuffled(self) -> list[str]:
        """The candidates in a new order: nobody always finds the caches as the same neighbour left them."""
        return self._random.sample(list(self._blocks), len(self._blocks))

    def timings(self) -> dict[str, Timing]:
        """What the rounds so far come to."""
        return {name: _summary(values) for name, values in self.samples.items()}


def compare(calls: Mapping[str, Sequence[Call]], device: torch.device, seconds: float = 1.0) -> dict[str, Timing]:
    """Time candidates against each other: a `Race` of so many seconds, all candidates together, in 7 rounds or more."""
    return Race(calls, device).run(seconds)


@dataclass(frozen=True)
class Block:
    """Calls between two readings of the clock: `run` gives seconds of one of the `calls`, `seconds` foretells `run`."""

    run: Callable[[], float]
    calls: int
    seconds: float


def _called_block(calls: Sequence[Call], device: torch.device, clock: Callable[[], float]) -> Block:
    def run(times: int) -> float:
        begin = clock()
        for _ in range(times):
            for call in calls:
                call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (clock() - begin) / (times * len(calls))

    once, times = run(1), 1  # warm: thread pools, primitive caches
    if once < _SLOW_SECONDS:
        times = max(1, round(_BLOCK_SECONDS / (run(1) * len(calls))))
        once = run(times)
    return Block(lambda: run(times), times * len(calls), once * times * len(calls))


def _replayed_block(calls: Sequence[Call]) -> Block:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compile and choose algorithms before capturing, as torch.cuda.graph asks
        for _ in range(3):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def run() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / len(calls)

    run()
    return Block(run, len(calls), run() * len(calls))


def _summary(samples: list[float]) -> Timing:
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high, len(samples))
