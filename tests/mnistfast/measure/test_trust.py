"""Which times can be compared."""

import pytest

from mnistfast.measure import trust


def timing(spread):
    return {"median": 2e-3, "low": 2e-3 * (1 - spread), "high": 2e-3 * (1 + spread), "rounds": 7}


def test_the_spread_is_half_the_distance_of_the_quartiles():
    assert trust.spread({"median": 4.0, "low": 3.0, "high": 9.0}) == 0.75


@pytest.mark.parametrize(("spread", "steady"), [(0.0, True), (0.19, True), (0.21, False), (25.04, False)])
def test_a_time_is_steady_up_to_a_fifth(spread, steady):
    assert trust.steady(timing(spread)) == steady


@pytest.mark.parametrize(
    ("ours", "other", "ratio"), [(0.1, 0.1, 1.5), (0.3, 0.1, None), (0.1, 0.3, None), (0.3, 0.3, None)]
)
def test_a_ratio_needs_two_steady_times(ours, other, ratio):
    seconds = {"ours": timing(ours), "other": timing(other), "third": timing(9.0)}
    seconds["other"] = {name: 1.5 * value for name, value in seconds["other"].items()}
    assert trust.times_faster(seconds, "ours", "other") == (None if ratio is None else pytest.approx(ratio))


def test_only_what_is_not_steady_is_named():
    shaky = {"group": "layer", "name": "a", "seconds": {"eager": timing(0.5), "ours": timing(0.1)}}
    steady = {"group": "layer", "name": "b", "seconds": {"eager": timing(0.1)}}
    assert trust.unsteady_rows([shaky, steady]) == {"layer: a": {"eager": pytest.approx(0.5)}}
