"""The steps that train, rehearsed: the project's trainer, its steps called, or replayed by what stands in for that."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu_steps import mnist, trainers, whole_steps
from benchmarks.gpu_steps.subjects import FORMS, Bench, model
from benchmarks.gpu_steps.trainers import Steps, on_device, preset, ready

BENCH = Bench("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """As in a child."""
    before = torch.get_num_threads()
    BENCH.settle()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    return on_device(BENCH, BENCH.images.train)


def training(data, graph):
    return ready(BENCH, model("lenet5", FORMS[0], "cpu"), data, preset(BENCH, "lenet5", graph=graph))


def test_every_form_is_called_and_replayed(monkeypatch):
    monkeypatch.setattr(whole_steps, "FORMS", FORMS[1:3])
    _, find = next(whole_steps.rows(BENCH))
    row = find()
    assert set(row) == {form.name for form in FORMS[1:3]}
    for found in row.values():
        assert set(found) == {"eager", "graph", "capture_s"}
        assert found["graph"]["us"] > 0


def test_what_cannot_be_recorded_is_named_and_called(monkeypatch):
    class Refusing(trainers.Launcher):
        def __init__(self, learner, batches, record):
            super().__init__(learner, Counter(), record, "planted")

    monkeypatch.setattr(trainers, "Launcher", Refusing)
    _, find = next(whole_steps.rows(BENCH))
    for found in find().values():
        assert found["failed"] == "RuntimeError: planted"
        assert found["eager"]["us"] > 0


@pytest.mark.parametrize("graph", ["off", "on"])
def test_steps_go_round_an_epoch(data, graph):
    """The fifth of a training of two steps is its first again."""
    trainer = training(data, graph)
    step, seen = Steps(BENCH, trainer), []
    for _ in range(5):
        step()
        seen.append(trainer.learner.cursor.now.tolist())
    assert seen == [[0, 0], [1, 8], [0, 0], [1, 8], [0, 0]]


def test_a_replayed_step_is_the_recordings(data, monkeypatch):
    replayed = []
    monkeypatch.setattr(trainers, "SimpleNamespace", lambda replay: SimpleNamespace(replay=lambda: replayed.append(1)))
    trainer = training(data, "on")
    before = [weight.clone() for weight in trainer.model.parameters()]
    for _ in range(3):
        Steps(BENCH, trainer)()
    assert len(replayed) == 3
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))


def test_the_clock_of_a_prepared_training_runs_over_its_replays(monkeypatch):
    seen = []

    def recording(replay):
        seen.append("recorded")
        return SimpleNamespace(replay=lambda: seen.append("replayed") or replay())

    def clock(_):
        seen.append("clock")
        return 0.0

    monkeypatch.setattr(trainers, "SimpleNamespace", recording)
    monkeypatch.setattr(mnist, "now", clock)
    find = next(find for key, find in mnist.rows(BENCH) if key["what"] == "prepared")
    assert find()["seconds"] == [0]
    assert seen == ["recorded", "clock", "replayed", "replayed", "clock"]


def test_a_prepared_training_is_replayed_and_judged():
    rows = {(key["what"], key.get("graph")): find for key, find in mnist.rows(BENCH)}
    assert set(rows) == {("data", None), ("prepared", "on"), ("prepared", "off"), ("trainer", "off")}
    for what in ("prepared", "trainer"):
        found = rows[what, "off"]()
        assert found["recording"] == [0]
        assert found["seconds"][0] > 0
        assert 0 <= found["accuracy"][0] <= 1
    replayed = rows["prepared", "on"]()
    assert (replayed["batch"], replayed["steps"]) == (8, 2)
    assert replayed["recording"][0] > 0
