"""Every workload raced: `pytest benchmarks/ --benchmark-only`.

pytest-benchmark's own columns are those of the fused layers (NCHW). Within each of its rounds the other forms run
first, in turns; their medians, the ratios to them and the setting are in `extra_info` (`--benchmark-json FILE`).
"""

from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from mnistfast.measure.forms import FUSED
from mnistfast.measure.layers import Workload
from mnistfast.measure.suite import Effort, prepare, setting


def test_speed(workload: Workload[Any], benchmark: BenchmarkFixture, effort: Effort) -> None:
    prepared = prepare(workload, effort)  # a wrong result ends the test here: no time is kept
    race = prepared.race
    benchmark.group = f"{workload.device}: {workload.group}"
    calls_a_turn = race.calls(FUSED)

    def others() -> None:
        if benchmark.stats is not None:  # None under --benchmark-disable
            benchmark.stats.iterations = calls_a_turn  # a turn is many calls; its columns are to be of one
        race.others(FUSED)

    benchmark.pedantic(race.turn, (FUSED,), setup=others, rounds=race.rounds(effort.seconds, workload.least_rounds))
    benchmark.extra_info.update(setting(workload.device) | prepared.row())
