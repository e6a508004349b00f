"""`mnistfast search`: it judges by validation images, keeps what it finds, and never has the test images."""

import json

import pytest
import torch
import yaml

from mnistfast import search, train
from mnistfast.data.sources import load
from mnistfast.options.learning import TrainConfig
from mnistfast.report.screen import Screen
from mnistfast.tasks import search as engine
from mnistfast.tasks.train import prepare

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_finds_settings_that_train_takes(tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    seen = []

    def watching(config, dataset, device):
        seen.append((config, len(dataset.test.labels)))
        return prepare(config, dataset, device)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "prepare", watching)
        out = tmp_path / "search"
        words = f"--model lenet5 --data {tiny} --epochs 1 --val 40 --augment none --trials 3 --threads 1 --out {out}"
        assert search.main([*words.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["settings"]) == {"lr", "batch_size", "weight_decay", "dropout"}
    trials = json.loads((out / "search.json").read_text())["trials"]
    assert [left for _, left in seen] == [0, 0, 0]  # the test images were taken away
    assert (trials[0]["lr"], seen[0][0].lr) == (5e-3, 5e-3)  # the preset's
    assert len({trial["lr"] for trial in trials}) == 3
    best = max(trials, key=lambda trial: trial["val_accuracy"])
    assert found["accuracy"] == best["val_accuracy"]
    assert found["preset_accuracy"] == trials[0]["val_accuracy"]
    config = yaml.safe_load((out / "best.yaml").read_text())
    assert (config["lr"], config["optimizer"], config["augment"]) == (best["lr"], "adamw", "none")
    assert train.main(["--config", str(out / "best.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert record["val_accuracy"] == best["val_accuracy"]


def test_no_augmentation_that_mirrors():
    assert "objects" not in engine.upright()
    assert "mild" in engine.upright()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--trials 0", "--trials is 0"),
        ("--val 0", "--val is 0. A search needs validation images"),
        ("--lr 1 --batch-size 1 --weight-decay 0 --dropout 0 --augment none", "nothing is left to look for"),
        ("--lr -1", "--lr is -1.0"),
    ],
)
def test_refused(words, message, tiny, capsys):
    pytest.importorskip("optuna")
    assert search.main([*words.split(), "--data", str(tiny)]) == 2
    assert capsys.readouterr().err.startswith(f"mnistfast: error: {message}")


def test_without_optuna(tiny, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert search.main(["--data", str(tiny)]) == 6
    assert "pip install 'mnistfast[search]'" in capsys.readouterr().err


def test_a_diverged_trial_has_no_accuracy(tiny):
    dataset, cpu = load(str(tiny)), torch.device("cpu")
    config = TrainConfig(model="lenet5", data=str(tiny), optimizer="sgd", lr=1e30, schedule="constant", epochs=1)
    screen = Screen(quiet=True)
    assert engine.validated(config, dataset, cpu, screen) is None
    assert engine.validated(TrainConfig(model="lenet5", epochs=1), dataset, cpu, screen) > 0.0


def test_each_trial_follows_measured_plans(tiny, measure, table, capsys):
    """Which the table has from the first one on, for batches of one size."""
    dataset, cpu = load(str(tiny)), torch.device("cpu")
    config = TrainConfig(model="lenet5", epochs=1, tune="on")
    for _ in range(2):
        engine.validated(config, dataset, cpu, Screen(quiet=False))
    assert len(measure.asked) == 1
    assert "nothing measured, the table has all 2 calls" in capsys.readouterr().out


def test_a_preset_with_a_batch_size_of_its_own(tiny, tmp_path):
    pytest.importorskip("optuna")
    words = f"--model speedrun --data {tiny} --epochs 1 --val 40 --trials 1 --threads 1 --quiet --out {tmp_path / 's'}"
    assert search.main(words.split()) == 0
    (trial,) = json.loads((tmp_path / "s" / "search.json").read_text())["trials"]
    assert trial["batch_size"] == 384


def test_trials_that_diverge(tiny, tmp_path, capsys):
    pytest.importorskip("optuna")
    words = f"--model lenet5 --data {tiny} --epochs 1 --val 40 --lr 1e30 --trials 2 --threads 1 --out {tmp_path / 's'}"
    assert search.main(words.split()) == 5
    streams = capsys.readouterr()
    assert "trial 1/2: diverged" in streams.out
    assert "all 2 trials diverged" in streams.err
    assert not (tmp_path / "s" / "best.yaml").exists()
    trials = json.loads((tmp_path / "s" / "search.json").read_text())["trials"]
    assert [trial["val_accuracy"] for trial in trials] == [None, None]
