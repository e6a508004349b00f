"""How busy the machine is."""

import os

import pytest

from mnistfast.measure import load
from mnistfast.measure.load import Load


@pytest.mark.parametrize(
    ("average", "cpus", "threads", "free"),
    [
        (0.0, 2, 2, True),
        (0.4, 2, 2, True),  # nobody's machine is at 0
        (1.9, 2, 2, False),
        (1.2, 2, 1, True),
        (1.9, 2, 1, False),
        (0.4, 2, 8, True),  # more threads than CPUs is no other work
        (60.0, 64, 2, True),
    ],
)
def test_other_work_leaves_the_threads_their_cpus(average, cpus, threads, free):
    assert Load(average, cpus).leaves_free(threads) == free


def test_is_told_in_words():
    assert [str(Load(1.94, 2)), str(Load(0.0, 1))] == ["load 1.9 on 2 CPUs", "load 0.0 on 1 CPU"]


def test_is_the_last_minutes(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 2.5, 3.5), raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 8}, raising=False)
    assert load.now() == Load(1.5, 3)


def test_cpus_are_the_machines_where_a_process_is_not_bound_to_some(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 2.5, 3.5), raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert load.now() == Load(1.5, 12)


def test_a_system_may_not_tell(monkeypatch):
    def unknown():
        raise OSError("not obtainable")

    monkeypatch.setattr(os, "getloadavg", unknown, raising=False)
    assert load.now() is None
    monkeypatch.delattr(os, "getloadavg")
    assert load.now() is None
