"""Which of a call's plans is to be taken: none that is wrong, and another than now only if it is faster without doubt.

Figures of the same kernel differ from one process to the next by a percent or two: the plan in force stays unless the
same other one beats it by more, again and again.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from convpool.testing import Race, Through
from convpool.testing.candidates import require_parity, timed_calls
from convpool.testing.timing import Call
from convpool.torch_private import conv_precision
from convpool.tuning.calls import Recorded

MARGIN = 0.03  # by which a plan must beat the one in force,
RACES = 3  # in so many races, each with blocks and warm-up of its own
_RACE_SECONDS = 0.3
_LEAST_ROUNDS = 5
# In float64, for each plan: what a kernel computes wrongly it does in a few images too.
_CHECKED_PRODUCTS = 1 << 26


@dataclass(frozen=True)
class Limit:
    """How long measuring may take: until `until` on the clock, a race not longer than `race` seconds."""

    clock: Callable[[], float]
    until: float
    race: float = _RACE_SECONDS

    @property
    def left(self) -> float:
        """Seconds; none if less than 0."""
        return self.until - self.clock()

    def shared(self, calls: int) -> "Limit":
        """The same for so many calls: their races take half of the time at most."""
        return Limit(self.clock, self.until, min(self.race, max(0.0, self.left) / (2 * RACES * max(1, calls))))


@dataclass(frozen=True)
class Outcome:
    """The plan to take; seconds of one call by each that took part."""

    winner: str
    seconds: Mapping[str, float]


def right_ones(call: Recorded, limit: Limit) -> tuple[dict[str, list[Call]], dict[str, str]] | None:
    """By plan, the calls to time, and why others are none: wrong, or they raise. None if there is no time for it."""
    images = max(1, _CHECKED_PRODUCTS // max(1, call.products))
    few, all_ = call.inputs(images), call.inputs()
    dx, backward = call.use.dx, call.use.training
    float32_on_gpu = call.device.type == "cuda" and call.x.dtype == torch.float32
    rounding = not float32_on_gpu or conv_precision() == "ieee"
    right: dict[str, list[Call]] = {}
    excluded: dict[str, str] = {}
    for plan in call.plans():
        if limit.left <= 0:
            return None
        layer = Through(plan.call)
        try:
            require_parity(few, layer, f"strides {few.x.stride()}", dx=dx, backward=backward, rounding=rounding)
            calls = timed_calls(all_, layer, dx=dx, backward=backward)
            calls[0]()
        except Exception as error:  # a kernel of anybody's
            excluded[plan.call] = f"{type(error).__name__}: {error}"
        else:
            right[plan.call] = calls
    return right, excluded


def contest(
    calls: Mapping[str, Sequence[Call]], incumbent: str, device: torch.device, replayed: bool, limit: Limit
) -> Outcome | None:
    """Who computes the calls from now on; None if there is no time to find out.

    Args:
        incumbent: who does now; the first plan in its place if it is not among them.
        replayed: on a GPU, time the replay of a graph of the calls.
    """
    incumbent = incumbent if incumbent in calls else next(iter(calls))
    challengers = [name for name in calls if name != incumbent]
    medians: dict[str, list[float]] = defaultdict(list)
    for _ in range(RACES):
        race = Race(
            {name: calls[name] for name in (incumbent, *challengers)}, device, replay=replayed, clock=limit.clock
        )
        if limit.left < _LEAST_ROUNDS * sum(race.foretold(name) * race.calls(name) for name in race.samples):
            return None
        timings = race.run(limit.race, _LEAST_ROUNDS)
        for name, timing in timings.items():
            medians[name].append(timing.median)
        bar = (1 - MARGIN) * timings[incumbent].median
        challengers = [name for name in challengers if timings[name].median < bar]
        if not challengers:
            break
    seconds = {name: median(found) for name, found in medians.items()}
    return Outcome(min(challengers, key=seconds.__getitem__, default=incumbent), seconds)
