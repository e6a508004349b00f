"""Every workload raced, on the CPU and on a GPU where there is one: `pytest benchmarks/ --benchmark-only`.

A workload is a group of pytest-benchmark's, each of its forms a row. The forms take turns in one race, which the first
row of a group starts; each row plays back to pytest-benchmark what the race recorded of its form. Ratios, setting and
the rest are in `extra_info` (`--benchmark-json FILE`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from mnistfast.measure import load, suite
from mnistfast.measure.layers import Workload
from mnistfast.measure.load import Load
from mnistfast.measure.page import COMPILED, compiled_form
from mnistfast.measure.suite import Effort
from mnistfast.measure.workloads import workloads


@dataclass(frozen=True)
class Result:
    """What is left of a race: models and tensors are not, or those of all workloads would be held at once.

    Attributes:
        row: as `mnistfast bench` has it, and the setting.
        samples: by form, seconds of one call, a sample for each round.
        calls: by form, how many calls a sample is the mean of.
    """

    row: dict[str, Any]
    samples: dict[str, list[float]]
    calls: dict[str, int]


def result(workload: Workload[Any], effort: Effort, before: Load | None) -> Result:
    """Race all forms of the workload. Raises ParityError: one computes something else than torch, no time is kept."""
    prepared = suite.raced(workload, effort)
    race, row = prepared.race, suite.setting(workload.device, before) | prepared.row()
    return Result(row, race.samples, {name: race.calls(name) for name in race.samples})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    effort = Effort(option("--seconds"), compile=not option("--no-compile"), everything=option("--all"))
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: not measured")
    before, parameters = load.now(), []
    for device in (torch.device("cpu"), torch.device("cuda")):
        for workload in workloads(device, everything=effort.everything):
            raced = cache(partial(result, workload, effort, before))
            parameters += [
                pytest.param(raced, form, id=f"{device}: {workload}: {form}", marks=[no_gpu] * (device.type == "cuda"))
                for form in suite.contenders(workload, effort)
            ]
    metafunc.parametrize(("raced", "form"), parameters)


class Clock:
    """A clock that what is played back moves."""

    def __init__(self) -> None:
        self._now = 0.0

    def read(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


CLOCK = Clock()


@pytest.mark.benchmark(timer=CLOCK.read)
def test_speed(raced: Callable[[], Result], form: str, benchmark: BenchmarkFixture) -> None:
    found = raced()
    row = found.row
    name = compiled_form(row) if form == COMPILED else form
    if name not in found.samples:
        pytest.skip("; ".join(why for label, why in row["missing"].items() if label.startswith(form)))
    benchmark.group = f"{row['device']}: {row['group']}: {row['name']}"
    benchmark.extra_info.update(row, form=name)
    samples, calls = found.samples[name], found.calls[name]
    played = cycle([seconds for seconds in samples for _ in range(calls)])
    benchmark.pedantic(lambda: CLOCK.advance(next(played)), rounds=len(samples), iterations=calls)
