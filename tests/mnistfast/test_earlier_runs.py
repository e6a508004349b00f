"""Runs that version 0.1.0 wrote in November 2026 (d552edc) load, go on and evaluate: earlier_runs/ is never renewed.

Made with the sample, two classes of 300 images, by
`train --model speedrun --classes 0,1 --epochs 3 --data sample --limit 300 --batch-size 64 --threads 1` (`trained`; with
`--ema 0.9` and stopped at step 9: `stopped`) and
`finetune --from trained --classes 2,3 --method lora:1 --epochs 2` with the same end (`finetuned`; `--epochs 3`, stopped
at step 9: `finetuning`).
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mnistfast import evaluate, finetune, train

RUNS = Path(__file__).with_name("earlier_runs")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Copies of all of them in the working folder, from which a fine-tuning finds its source."""
    shutil.copytree(RUNS, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def accuracy(runs, capsys):
    """Returns what `mnistfast evaluate` says of some words."""

    def said(words):
        assert evaluate.main([*words.split(), "--json", "--threads", "1"]) == 0
        return json.loads(capsys.readouterr().out)["accuracy"]

    return said


def test_a_trained_model_answers_as_it_did(runs, accuracy):
    known = json.loads((runs / "trained/test.json").read_text())["accuracy"]
    assert accuracy("trained") == pytest.approx(known, abs=0.01)


@pytest.mark.parametrize(
    ("command", "run", "method"), [(train, "stopped", None), (finetune, "finetuning", "lora")], ids=["train", "lora"]
)
def test_a_stopped_run_goes_on_to_its_end(runs, no_pictures, command, run, method):
    before = (runs / run / "metrics.jsonl").read_text()
    assert command.main(["--resume", run, "--quiet"]) == 0
    records = (runs / run / "metrics.jsonl").read_text()
    assert records.startswith(before)
    assert [json.loads(line)["epoch"] for line in records.splitlines()] == [1, 2, 3]
    assert json.loads((runs / run / "test.json").read_text())["accuracy"] > 0.9
    assert (runs / run / "adapter.safetensors").exists() == (method == "lora")


def test_its_adapter_makes_the_model_that_was_saved(runs):
    words = "--from trained --merge finetuned/adapter.safetensors --out merged.safetensors --quiet"
    assert finetune.main(words.split()) == 0
    merged, saved = load_file("merged.safetensors"), load_file("finetuned/best.safetensors")
    assert merged.keys() == saved.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(merged[name], weight)


def test_the_head_of_its_earlier_task_is_still_there(accuracy):
    assert accuracy("finetuned --head 1 --data sample --classes 0,1") > 0.9
