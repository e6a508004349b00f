"""Who wins: by a clock that the calls move on."""

import pytest
import torch

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
