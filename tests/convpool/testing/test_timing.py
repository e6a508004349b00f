"""How speed is measured: who takes turns with whom, and how often, by a clock that advances when the calls say so."""

import pytest
import torch

from convpool.testing.timing import Race

CPU = torch.device("cpu")


class Clock:
    """Stands for the machine's clock; a call that takes so many seconds moves it on by as many."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def test_all_take_turns_and_nobody_always_follows_the_same() -> None:
    seen: list[str] = []
    clock = Clock()
    calls = {name: [lambda name=name: (seen.append(name), clock.advance(3e-3))] for name in "abc"}
    race = Race(calls, CPU, clock=clock)
    seen.clear()
    timings = race.run(0, least=12)
    rounds = ["".join(seen[i : i + 3]) for i in range(0, len(seen), 3)]
    assert all(sorted(turns) == ["a", "b", "c"] for turns in rounds)
    followed = {name: {seen[i - 1] for i in range(1, len(seen)) if seen[i] == name} for name in "abc"}
    assert all(len(neighbours) > 1 for neighbours in followed.values())
    assert [one.rounds for one in timings.values()] == [12, 12, 12]


def test_a_turn_is_many_calls_of_what_is_quick() -> None:
    clock = Clock()
    calls = {"quick": [lambda: clock.advance(1e-5)], "slow": [lambda: clock.advance(5e-3)]}
    race = Race(calls, CPU, clock=clock)
    assert race.calls("quick") == 200  # 2 ms of them
    assert race.calls("slow") == 1
    assert race.foretold("quick") == pytest.approx(1e-5)
    assert race.foretold("slow") == pytest.approx(5e-3)
    assert race.rounds(1.0) == 143  # of 2 and 5 ms
    assert race.rounds(0.0, least=4) == 4
    assert {name: one.median for name, one in race.run(0).items()} == pytest.approx({"quick": 1e-5, "slow": 5e-3})


def test_a_call_of_half_a_second_is_warm_after_one() -> None:
    clock, calls = Clock(), []
    race = Race({"slow": [lambda: (calls.append(1), clock.advance(0.5))]}, CPU, clock=clock)
    assert len(calls) == race.calls("slow") == 1


def test_a_latecomer_starts_the_race_again() -> None:
    race = Race({"a": [lambda: None]}, CPU)
    race.run(0, least=2)
    race.add("b", [lambda: None])
    assert race.samples == {"a": [], "b": []}
