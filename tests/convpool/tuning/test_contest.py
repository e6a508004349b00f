"""Who wins: by a clock that the calls move on."""

from typing import Any

import pytest
import torch

from convpool.testing import Race
from convpool.tuning import contest as contest_module
from convpool.tuning.contest import Limit, contest


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def winner(rival: float, until: float = 1e9) -> str | None:
    """Of a plan of 1 ms in force, and a rival of so many milliseconds."""
    clock = Clock()

    def advance(name: str) -> None:
        if name == "a/b":
            clock.now += 1e-3
        else:
            clock.now += rival * 1e-3

    calls = {"a/b": [lambda: advance("a/b")], "c/d": [lambda: advance("c/d")]}
    outcome = contest(calls, "a/b", torch.device("cpu"), False, Limit(clock, until, 0.01))
    return outcome and outcome.winner


@pytest.mark.parametrize(("milliseconds", "wins"), [(0.971, "a/b"), (0.969, "c/d"), (1.5, "a/b")])
def test_a_rival_must_be_faster_by_three_percent(milliseconds: float, wins: str) -> None:
    assert winner(milliseconds) == wins


def test_no_time_no_winner() -> None:
    assert winner(0.5, until=0.01) is None


@pytest.mark.parametrize(("lost", "wins"), [(None, "c/d"), (1, "a/b"), (2, "a/b"), (3, "a/b")])
def test_a_win_in_two_of_three_races_is_none(lost: int | None, wins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rival takes half of the time, but in the race that it loses; in no race does it take much longer."""
    clock, races = Clock(), list[Race]()

    class Counted(Race):
        def __init__(self, *given: Any, **named: Any) -> None:
            races.append(self)
            super().__init__(*given, **named)

    def advance(milliseconds: float) -> None:
        clock.now += milliseconds * 1e-3

    monkeypatch.setattr(contest_module, "Race", Counted)
    rival = [lambda: advance(0.99 if len(races) == lost else 0.5)]
    calls = {"a/b": [lambda: advance(1.0)], "c/d": rival}
    outcome = contest(calls, "a/b", torch.device("cpu"), False, Limit(clock, 1e9, 0.01))
    assert outcome is not None
    assert outcome.winner == wins
