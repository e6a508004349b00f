"""What a fine-tuning is told: defaults and rules."""

from dataclasses import fields

import pytest

from mnistfast import finetune
from mnistfast.errors import UsageError
from mnistfast.options.fields import spec_of
from mnistfast.options.finetuning import FEW_SHOTS, USUAL, FinetuneConfig


def test_a_few_shots_have_settings_of_their_own():
    few = FinetuneConfig(source="a", data="b", shots=5, lr=0.5)
    assert (few.batch_size, few.val, few.lr) == (16, 0.0, 0.5)
    usual = FinetuneConfig(source="a", data="b")
    assert (usual.batch_size, usual.val, usual.lr, usual.label_smoothing) == (64, 0.1, 2e-3, 0.1)


def test_help_tells_both(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "500")  # or lines end within words
    assert finetune.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "images a step; default: 64, 16 for --shots" in text
    assert "peak learning rate; default: 0.002, 0.001 for --shots" in text
    assert "over the training images; default: 5, more for a small set" in text
    assert "growing to --batch-size --optimizer" in text, "which has no default to tell"


def test_what_is_usual_is_of_fields():
    may = {option.name for option in fields(FinetuneConfig) if spec_of(option).preset}
    assert USUAL.keys() <= may | {"epochs"}
    assert FEW_SHOTS.keys() <= may


@pytest.mark.parametrize(
    ("replay", "expected"),
    [("mnist", ("mnist", 0.1)), ("mnist:0.5", ("mnist", 0.5)), ("C:/x", ("C:/x", 0.1)), ("a/b:1", ("a/b", 1.0))],
)
def test_replay_names_data_and_share(replay, expected):
    assert FinetuneConfig(source="a", data="b", replay=replay).replayed == expected


def test_shots_and_limit():
    with pytest.raises(UsageError, match="--shots and --limit exclude each other"):
        FinetuneConfig(source="a", data="b", shots=1, limit=2)
