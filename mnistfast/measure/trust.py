"""Which times can be compared: one whose rounds differ too much is marked, and no ratio is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

LARGEST_SPREAD = 0.2  # of a time in a ratio; on a machine left alone it is 0.09 at most (benchmarks/results/cpu)
NOT_STEADY = "not steady"

Timing = Mapping[str, float]  # `convpool.testing.timing.Timing` as the JSON has it


def spread(timing: Timing) -> float:
    """Returns half the distance between the quartiles as a share of the median."""
    return (timing["high"] - timing["low"]) / 2 / timing["median"]


def steady(timing: Timing) -> bool:
    """Returns whether a ratio may be made of this time."""
    return spread(timing) <= LARGEST_SPREAD


def unsteady(seconds: Mapping[str, Timing]) -> dict[str, float]:
    """Returns the spread of each form whose time is not steady."""
    return {form: spread(timing) for form, timing in seconds.items() if not steady(timing)}


def unsteady_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns the same of each workload that has any such form, by the workload's name."""
    found = {f"{row['group']}: {row['name']}": unsteady(row["seconds"]) for row in rows}
    return {workload: forms for workload, forms in found.items() if forms}


def times_faster(seconds: Mapping[str, Timing], ours: str, other: str) -> float | None:
    """Returns how often our form's time goes into another's, or None where one of the two is not steady."""
    mine, theirs = seconds[ours], seconds[other]
    return theirs["median"] / mine["median"] if steady(mine) and steady(theirs) else None
