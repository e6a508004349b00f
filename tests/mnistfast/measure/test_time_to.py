"""The time to an accuracy: who runs when, what is on the clock, what is scored."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mnistfast import bench
from mnistfast.data.sources import load
from mnistfast.measure import time_to
from mnistfast.measure.forms import FUSED
from mnistfast.measure.time_to import Entrant
from mnistfast.options.commands import TimeToOptions
from mnistfast.report.screen import Screen

CPU = torch.device("cpu")


@pytest.fixture
def learns(monkeypatch):
    """Notes what is trained, and trains a step of it."""
    seen = []
    right = time_to.learn

    def learn(model, train, config):
        assert config.device == "cpu"  # a recipe may depend on where it is carried out
        seen.append((config.model, config.seed, train))
        return right(model, train, time_to.TrainConfig(model=config.model, max_steps=1))

    monkeypatch.setattr(time_to, "learn", learn)
    return seen


@pytest.mark.slow
def test_all_run_once_with_each_seed_in_turns(tiny, learns):
    data = load(str(tiny))
    entrants = [Entrant("lenet5", FUSED), Entrant("cnn1", FUSED)]
    yielded = [entrant.model for entrant in time_to.race(entrants, data.train, data.test, 10, CPU, seeds=3)]
    assert yielded == ["lenet5", "cnn1", "cnn1", "lenet5", "lenet5", "cnn1"]
    assert [(model, seed) for model, seed, _ in learns[2:]] == list(zip(yielded, [0, 0, 1, 1, 2, 2], strict=True))
    assert all([run.seed for run in entrant.runs] == [0, 1, 2] for entrant in entrants)
    for _, _, train in learns[:2]:  # the throw-away trainings see noise
        assert not np.array_equal(train.images, data.train.images)
    assert all(train is data.train for _, _, train in learns[2:])


def test_validation_never_looks_at_the_test_images(tiny, learns, monkeypatch):
    data = load(str(tiny))
    data.test.images[:] = 0
    monkeypatch.setattr(time_to, "load", lambda *_, **__: data)
    options = TimeToOptions(model="lenet5", seeds=1, validate=True, forms="fused")
    result = time_to.time_to(options, "again", Screen(quiet=True))
    assert result["judged_by"].startswith("33 held-out training images")
    assert result["training_images"] == 167
    train, scored = time_to._splits(data, validate=True)
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in scored.images}


@pytest.mark.slow
def test_the_recording_of_a_step_is_told_apart(tiny, learns, monkeypatch, capsys):
    options = TimeToOptions(model="lenet5", data=str(tiny), seeds=2, forms="fused")
    (entrant,) = time_to.time_to(options, "again", Screen(quiet=False))["entrants"]
    assert entrant["launched"] == "called"
    assert entrant["seconds_without_recording"]["mean"] == entrant["seconds"]["mean"]
    assert "recording" not in capsys.readouterr().out

    called, recordings = time_to.learn, iter([5.0, 0.001, 0.003])  # of the throw-away training first

    def replayed(*arguments):
        return replace(called(*arguments), replayed=True, recording=next(recordings))

    monkeypatch.setattr(time_to, "learn", replayed)
    (entrant,) = time_to.time_to(options, "again", Screen(quiet=False))["entrants"]
    assert entrant["launched"] == "replayed"
    assert [run["recording"] for run in entrant["runs"]] == [0.001, 0.003]
    for how in ("median", "mean"):
        assert entrant["seconds_without_recording"][how] == pytest.approx(entrant["seconds"][how] - 0.002)
    assert "0.003 s of it recording a step" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_reports_and_asks_for_the_target(tiny, learns, tmp_path, capsys):
    words = f"time-to --model lenet5 --data {tiny} --seeds 2 --target 100 --out {tmp_path}".split()
    assert bench.main(words) == 8
    shown = capsys.readouterr()
    assert "over 2 seeds < 100 %" in shown.err
    result = json.loads((tmp_path / bench.TIME_TO).read_text())
    assert len(result["entrants"]) == 4
    assert result["outside_the_clock"].keys() == {"reading", "importing"}
    for entrant in result["entrants"]:
        assert entrant["name"] in shown.out
        assert entrant["n"] == len(entrant["runs"]) == 2
        seconds = [run["seconds"] for run in entrant["runs"]]
        assert entrant["seconds"]["low"] == min(seconds) > 0
        assert entrant["seconds"]["median"] == pytest.approx(sum(seconds) / 2)
        assert all(entrant["outside_the_clock"].values())
        assert 0 <= entrant["accuracy"]["low"] <= entrant["accuracy"]["mean"] <= entrant["accuracy"]["high"] <= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--seeds 0", "--seeds is 0"),
        ("--target 101", "--target is 101.0"),
        ("--model lenet4", "did you mean 'lenet5'"),
        ("--against lenet4", "did you mean 'lenet5'"),
    ],
)
def test_impossible_values(words, said, capsys):
    assert bench.main(["time-to", *words.split()]) == 2
    assert said in capsys.readouterr().err
