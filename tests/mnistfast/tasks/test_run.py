"""What a run leaves, and that it does not hang on how often it was stopped."""

import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from convpool import choices
from mnistfast import train
from mnistfast.data.sources import load
from mnistfast.options.learning import TrainConfig
from mnistfast.runs.checkpoint import load_checkpoint
from mnistfast.runs.state import load_state
from mnistfast.tasks.train import prepare
from mnistfast.training.trainer import Trainer
from tests.mnistfast.runs.outcomes import assert_same_outcome, outcome, signal_at
from tests.mnistfast.training.measuring import choosing

pytestmark = pytest.mark.usefixtures("no_pictures")

CPU = torch.device("cpu")
FILES = {
    "config.yaml", "env.json", "metrics.jsonl", "log.txt", "best.safetensors", "last.safetensors", "state.pt",
    "test.json", "curves.png", "confusion.png", "errors.png", "REPORT.md", "STATUS",
}  # fmt: skip


@pytest.fixture
def uninterrupted(finished):
    return outcome(finished)


def test_folder_is_complete(trained):
    assert {path.name for path in trained.iterdir()} - {".lock"} == FILES
    state = load_state(trained / "state.pt")
    assert state["step"] == 15
    model, info = load_checkpoint(trained)
    assert info.temperature != 1.0
    assert info.metrics["val_accuracy"] == max(record["val_accuracy"] for record in outcome(trained)[1])
    assert model.arguments["dropout"] == 0.3


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format])
def test_weights_lie_as_the_device_wants_them(tiny, monkeypatch, format):
    monkeypatch.setattr("mnistfast.tasks.prepared.fast_format", lambda device: format)
    model = prepare(TrainConfig(model="lenet5"), load(str(tiny)), torch.device("cpu")).trainer.model
    assert model.features[1].weight.is_contiguous(memory_format=format)


def test_seed_alone_decides(options, tmp_path, uninterrupted):
    for seed, same in ((0, True), (1, False)):
        out = tmp_path / f"s{seed}"
        assert train.main([*options, "--out", str(out), "--seed", str(seed), "--quiet"]) == 0
        assert (outcome(out)[1] == uninterrupted[1]) is same


def test_test_images_decide_nothing(options, tmp_path, tiny, write_images, uninterrupted):
    """The same training images beside other test images: the same weights, epochs and temperature."""
    split = load(str(tiny)).train
    other = write_images(
        tmp_path / "set", split.images[:, 0], split.labels, 255 - split.images[:20, 0], split.labels[:20]
    )
    out = tmp_path / "run"
    assert train.main([*options, "--data", str(other), "--out", str(out), "--quiet"]) == 0
    weights, records, scores = outcome(out)
    assert records == uninterrupted[1]
    assert all(torch.equal(weights["best"][key], tensor) for key, tensor in uninterrupted[0]["best"].items())
    assert scores["temperature"] == uninterrupted[2]["temperature"]
    assert scores["accuracy"] != uninterrupted[2]["accuracy"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_at_the_steps_end(options, tmp_path, monkeypatch, capsys, uninterrupted, signum, code):
    out = tmp_path / "run"
    for step, words in ((7, [*options, "--out", str(out)]), (12, ["--resume", str(out)])):
        with monkeypatch.context() as patch:
            signal_at(patch, [step], signum)
            assert train.main(words) == code
        assert (out / "STATUS").read_text() == "interrupted\n"
        assert load_state(out / "state.pt")["step"] == step
        saved = f"mnistfast: stopped at step {step}; saved {out}/last.safetensors. "
        assert capsys.readouterr().err == f"{saved}Continue: mnistfast train --resume {out}\n"
        assert load_checkpoint(out / "last.safetensors")[1].metrics == {"step": step}
    assert train.main(["--resume", str(out)]) == 0
    assert_same_outcome(out, uninterrupted)


def test_saving_after_a_resume_makes_the_checkpoints_fit_the_state(options, tmp_path, monkeypatch):
    out = tmp_path / "run"
    for step, words in ((7, [*options, "--out", str(out)]), (8, ["--resume", str(out)])):
        with monkeypatch.context() as patch:
            signal_at(patch, [step], signal.SIGINT)
            assert train.main(words) == 130
        assert load_checkpoint(out)[1].metrics["epoch"] == 1
        (out / "best.safetensors").unlink()


def test_second_signal_stops_at_once(options, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        state_dict = Trainer.state_dict  # which the first signal asks for
        patch.setattr(
            Trainer, "state_dict", lambda self: signal.raise_signal(signal.SIGINT) if self.step else state_dict(self)
        )
        signal_at(patch, [2], signal.SIGINT)
        assert train.main([*options, "--out", str(out)]) == 130
    assert "stopped at once" in capsys.readouterr().err
    assert (out / "STATUS").read_text() == "interrupted\n"


def test_divergence(options, tmp_path, capsys):
    out = tmp_path / "run"
    words = [*options, "--out", str(out), "--optimizer", "sgd", "--lr", "1e30", "--schedule", "constant"]
    assert train.main(words) == 5
    error = capsys.readouterr().err
    assert error.startswith("mnistfast: error: the loss became")
    assert f"(learning rate 1e+30, fp32). Last good state: {out}/last.safetensors (step 0). FIX: --lr 2.5e+29" in error
    assert (out / "STATUS").read_text().startswith("failed: the loss became")
    assert all(torch.isfinite(weight).all() for weight in load_file(out / "last.safetensors").values())


def test_early_stop_is_said(options, tmp_path, capsys):
    words = [*options, "--lr", "1e-30", "--out", str(tmp_path / "run")]  # too small to change any weight
    assert train.main([*words, "--patience", "1"]) == 0
    assert "stopped early: no better epoch for 1" in capsys.readouterr().out


def test_chance_level_is_warned_of(options, tmp_path, capsys):
    assert train.main([*options, "--out", str(tmp_path / "run"), "--lr", "1e-9", "--epochs", "1"]) == 0
    assert "after 1 epoch: labels shuffled, or --lr too high?" in capsys.readouterr().err


def test_bug_of_ours(options, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(Trainer, "run", lambda self: 1 / 0)
    assert train.main([*options, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert f"ZeroDivisionError: division by zero. This is a bug of ours; the traceback is in {out / 'log.txt'}" in error
    assert "Traceback" not in error
    assert "Traceback" in (out / "log.txt").read_text()


EVERYTHING = (
    "--augment mild --ema 0.9 --clip 1 --patience 2 --epochs 7 --schedule onecycle --label-smoothing 0.1 --max-steps 32"
)


@pytest.mark.parametrize("steps", [(7, 12), (20,)])
def test_resume_with_everything_is_bit_for_bit(options, tmp_path, monkeypatch, steps):
    """Augmentation, average, clipping, one-cycle and early stopping, interrupted within an epoch and at its end."""
    words = [*options, *EVERYTHING.split(), "--quiet"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train.main([*words, "--out", str(whole)]) == 0
    expected = outcome(whole)
    last = expected[1][-1]["step"]
    words = [*words, "--out", str(out)]
    for step in steps:
        if step < last:
            with monkeypatch.context() as patch:
                signal_at(patch, [step], signal.SIGINT)
                assert train.main(words) == 130
            words = ["--resume", str(out), "--quiet"]
    assert train.main(words) == 0
    assert_same_outcome(out, expected)
    state, other = load_state(whole / "state.pt"), load_state(out / "state.pt")
    for name, weight in state["average"].items():
        assert torch.equal(other["average"][name], weight), name


def test_plans_are_measured_and_told(options, tmp_path, measure, capsys):
    out = tmp_path / "run"
    assert train.main([*options, "--tune", "on", "--out", str(out)]) == 0
    assert measure.asked == [{"seconds": 30.0, "replayed": False}]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        "measuring for at most 30 s which plans of the fused layers are fastest",
        "plans of fused layers: 2 of 2 calls measured in 1.5 s",
    ]
    assert lines[2] in (out / "log.txt").read_text()
    assert "| plans of fused layers | 2 of 2 calls measured in 1.5 s |" in (out / "REPORT.md").read_text()


def test_a_run_resumes_by_its_own_plans(options, tmp_path, monkeypatch, measure, table, uninterrupted):
    """Bit for bit, though the table has changed since, and measuring would come to something else."""
    words = [*options, "--tune", "on", "--quiet"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train.main([*words, "--out", str(whole)]) == 0
    assert outcome(whole)[1] != uninterrupted[1]
    with monkeypatch.context() as patch:
        signal_at(patch, [7], signal.SIGINT)
        assert train.main([*words, "--out", str(out)]) == 130
    assert len(measure.asked) == 1  # the second run found the plans in the table
    measure.plan = "cpu/split"
    choices.keep(CPU, choosing(measure.plan, choices.in_force(CPU).by_call))
    assert train.main(["--resume", str(out), "--quiet"]) == 0
    assert_same_outcome(out, outcome(whole))
    assert "| plans of fused layers | nothing measured, the table has all 2 calls |" in (out / "REPORT.md").read_text()


@pytest.mark.parametrize("tune", ["auto", "off"])
def test_on_a_cpu_the_rule_decides(options, tmp_path, measure, unreadable_table, uninterrupted, tune):
    out = tmp_path / "run"
    assert train.main([*options, "--tune", tune, "--out", str(out), "--quiet"]) == 0
    assert_same_outcome(out, uninterrupted)
    assert measure.asked == []
    assert "| plans of fused layers | by the rule |" in (out / "REPORT.md").read_text()


def test_average_is_what_is_kept(options, tmp_path):
    out = tmp_path / "run"
    assert train.main([*options, "--ema", "0.9", "--out", str(out), "--quiet"]) == 0
    state, last = load_state(out / "state.pt"), load_file(out / "last.safetensors")
    assert all(torch.equal(state["average"][f"module.{name}"], weight) for name, weight in last.items())
    assert any(not torch.equal(state["model"][name], weight) for name, weight in last.items())


def test_limit_and_steps(options, tmp_path, capsys):
    words = [*options, "--limit", "60", "--max-steps", "2", "--batch-size", "16", "--out", str(tmp_path / "run")]
    assert train.main(words) == 0
    assert "40 training images, 20 held out" in capsys.readouterr().out
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record["step"] == 2


def test_tensorboard(options, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, [7], signal.SIGINT)
        assert train.main([*options, "--tensorboard", "--out", str(out)]) == 130
    assert train.main(["--resume", str(out), "--tensorboard"]) == 0
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_accuracy")] == [5, 10, 15]
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    capsys.readouterr()
    assert train.main([*options, "--tensorboard", "--out", str(tmp_path / "other")]) == 6
    assert "TensorBoard is not installed" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("words", ["--precision bf16", "--deterministic"])
def test_other_arithmetic_learns_too(options, tmp_path, words):
    out = tmp_path / "run"
    try:
        assert train.main([*options, *words.split(), "--epochs", "8", "--out", str(out), "--quiet"]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    losses = [record["loss"] for record in outcome(out)[1]]
    assert losses[-1] < 0.75 * losses[0]
    assert {weight.dtype for weight in load_file(out / "last.safetensors").values()} == {torch.float32}


@pytest.mark.slow
def test_compiled_model_learns_the_same(options, tmp_path):
    for name, words in (("plain", []), ("compiled", ["--compile"])):
        assert train.main([*options, "--dropout", "0", *words, "--out", str(tmp_path / name), "--quiet"]) == 0
    plain, compiled = (outcome(tmp_path / name)[1] for name in ("plain", "compiled"))
    assert [record["loss"] for record in compiled] == pytest.approx([record["loss"] for record in plain], abs=1e-3)


def test_class_folders_in_colour_train_cifar_cnn(tmp_path, capsys):
    """A set in CIFAR-10's shape: three colours to tell apart, at brightnesses of every kind."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 10)):
        for k, name in enumerate(("red", "green", "blue")):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for n in range(count):
                image = rng.integers(0, 100, (32, 32, 3), np.uint8)
                image[8:24, 8:24, k] += rng.integers(50, 150, dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{n}.png")
    out = tmp_path / "run"
    words = [
        "--model",
        "cifar-cnn",
        "--data",
        str(tmp_path / "set"),
        "--epochs",
        "8",
        "--batch-size",
        "16",
        "--augment",
        "objects",
    ]
    assert train.main([*words, "--val", "12", "--out", str(out), "--quiet"]) == 0
    assert json.loads((out / "test.json").read_text())["accuracy"] >= 0.9
