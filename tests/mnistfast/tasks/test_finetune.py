"""Fine-tuning keeps its promises: what is left out, what stays as it was, what is replayed, what is told."""

import json
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mnistfast import evaluate, finetune
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.data.statistics import channel_stats
from mnistfast.models.zoo import build
from mnistfast.options.finetuning import FinetuneConfig
from mnistfast.runs.checkpoint import load_checkpoint
from mnistfast.tasks.finetune import prepare
from mnistfast.tasks.source import open_source
from mnistfast.training.inference import embed, predict
from tests.mnistfast.runs.outcomes import signal_at

pytestmark = pytest.mark.usefixtures("no_pictures")
CPU = torch.device("cpu")
NEW = "--classes 5,6,7,8,9 --epochs 2 --batch-size 20 --val 10 --threads 1 --quiet"


@pytest.fixture
def tune(finished, tiny, tmp_path):
    """Fine-tunes the finished run on five of its classes; returns the new run's folder and comparison."""

    def run(words="", data=None, name="tuned"):
        out = tmp_path / name
        line = f"--from {finished} --data {data or tiny} {NEW} --out {out} {words}"
        assert finetune.main(line.split()) == 0
        return out, json.loads((out / "finetune.json").read_text())

    return run


def test_before_and_after(tune, finished, tiny, capsys):
    out, comparison = tune("--method last:2")
    test = json.loads((finished / "test.json").read_text())
    assert comparison["old"]["before"] == {name: test[name] for name in ("accuracy", "n", "interval")}
    after = json.loads((out / "test.json").read_text())
    assert comparison["new"]["after"]["accuracy"] == after["accuracy"]
    assert evaluate.main(f"{out} --head 1 --data {tiny} --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == comparison["old"]["after"]["accuracy"]
    assert evaluate.main(f"{out} --json".split()) == 0  # its own data and classes
    assert json.loads(capsys.readouterr().out)["accuracy"] == after["accuracy"]
    report = (out / "REPORT.md").read_text()
    assert "| new accuracy | " in report
    assert "| old accuracy | " in report
    assert comparison["trained_parameters"] == 120 * 84 + 84 + 84 * 5 + 5


@pytest.mark.parametrize("augment", ["none", "mild"])  # features are computed once, or anew in each step
def test_a_frozen_body_keeps_every_bit(tune, finished, augment):
    out, comparison = tune(f"--method head --augment {augment}")
    before, after = (load_file(folder / "best.safetensors") for folder in (finished, out))
    for name, tensor in before.items():
        kept = name.replace("head.5", "old_heads.0")  # the dropout is head.4
        assert torch.equal(after[kept], tensor), name
    assert comparison["old"]["before"] == comparison["old"]["after"]
    assert comparison["trained_parameters"] == 84 * 5 + 5


def prepared(finished, data, words):
    """Returns a fine-tuning before it learns, and what it is compared by."""
    config = FinetuneConfig(source=str(finished), data=str(data), threads=1, **words)
    dataset = load(str(data), classes=config.classes)
    config, source = open_source(config, dataset, offline=True)
    return prepare(config, dataset, CPU, source)


def samples(data):
    """Returns all of a DeviceData."""
    return data.gather(torch.arange(len(data)))


def test_cached_features_change_nothing(finished, tiny, monkeypatch):
    words = {"method": "head", "classes": "1,2,3", "epochs": 3, "batch_size": 8}
    cached, comparison = prepared(finished, tiny, words)
    assert comparison.embedding_seconds > 0
    monkeypatch.setattr("mnistfast.tasks.finetune.embed", lambda model, data: data)
    plain, _ = prepared(finished, tiny, words)
    for run in (cached, plain):
        torch.manual_seed(5)
        assert [record for record in run.trainer.run() if record][-1]["step"] == 21
    data = DeviceData(cached.dataset.test, CPU, cached.info.mean, cached.info.std)
    model = cached.trainer.model
    logits = [predict(run.trainer.model, data)[0] for run in (cached, plain)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(predict(model, embed(model, data))[0], logits[0], rtol=0, atol=1e-4)


def test_images_of_the_sources_test_set_are_left_out(tune, finished, tiny, write_images, tmp_path, capsys):
    """The same run as on a set without them: same weights. The line says how many."""
    known, clean = load(str(tiny)).test, load("sample").train
    clean = Split(clean.images[-200:], clean.labels[-200:])
    images = np.concatenate([clean.images[:150], known.images, clean.images[150:]])[:, 0]
    labels = np.concatenate([clean.labels[:150], known.labels, clean.labels[150:]])
    test = clean.images[:20, 0], clean.labels[:20]
    leaky = write_images(tmp_path / "leaky", images, labels, *test)
    pure = write_images(tmp_path / "pure", clean.images[:, 0], clean.labels, *test)
    (first, comparison), (second, _) = tune(data=leaky, name="a"), tune(data=pure, name="b")
    five_to_nine = int((known.labels >= 5).sum())
    assert comparison["left_out"] == five_to_nine == 25
    assert (
        f"left out {five_to_nine} training images that are in the source's test set" in (first / "log.txt").read_text()
    )
    one, two = (load_file(folder / "best.safetensors") for folder in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_nothing_is_left_to_learn_from(finished, tiny, write_images, tmp_path, capsys):
    known = load(str(tiny)).test
    only_known = write_images(tmp_path / "known", *[known.images[:, 0], known.labels] * 2)
    assert finetune.main(f"--from {finished} --data {only_known} --out {tmp_path / 'x'}".split()) == 3
    assert "all training images of known are in the source's test set" in capsys.readouterr().err


def test_replayed_images_are_those_allowed(finished, tiny, write_images, tmp_path):
    """None of a test set, old or new, even where the old training images hold some."""
    split, known = load(str(tiny)).train, load(str(tiny)).test
    images, labels = np.concatenate([split.images, known.images]), np.concatenate([split.labels, known.labels])
    leaky = write_images(tmp_path / "old", images[:, 0], labels, known.images[:30, 0], known.labels[:30])
    run, comparison = prepared(finished, tiny, {"classes": "5,6,7", "replay": f"{leaky}:1"})
    replay = run.trainer.learner.replay
    assert replay.head == 1
    forbidden_count = len({image.tobytes() for image in [*known.images[:30], *run.dataset.test.images]})
    assert len(replay.data) == 250 - forbidden_count
    old = comparison.start.source.old
    tests = (DeviceData(split, CPU, run.info.mean, run.info.std) for split in (old.test, run.dataset.test))
    forbidden = {image.numpy().tobytes() for data in tests for image in samples(data)[0]}
    assert not forbidden & {image.numpy().tobytes() for image in samples(replay.data)[0]}
    first, again, other = replay.draw(50, (0, 1)), replay.draw(50, (0, 1)), replay.draw(50, (0, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert {id(p) for p in run.trainer.model.old_heads.parameters()} <= {
        id(p) for group in run.trainer.learner.optimizer.param_groups for p in group["params"]
    }


def test_replay_keeps_the_old_task(reader):
    """A gentle task ruins the old one in a few steps; with old samples beside it, it does not."""
    after = {}
    for replay in (None, "sample"):
        words = {"classes": "4,9", "epochs": 4, "batch_size": 32, "limit": 400, "lr": 3e-3, "replay": replay}
        run, comparison = prepared(reader, "sample", words)
        list(run.trainer.run())
        _, after[replay] = comparison.accuracies(run.info)
    before = json.loads((reader / "test.json").read_text())["accuracy"]
    assert after["sample"] > before - 0.04  # found: 0.02 below
    assert after[None] < after["sample"] - 0.05  # found: 0.11 below


def test_lora_is_saved_small_and_merges(tune, finished, tmp_path, capsys):
    out, comparison = tune("--method lora:2 --ema 0.5")
    adapter = load_file(out / "adapter.safetensors")
    assert sum(tensor.numel() for tensor in adapter.values()) == comparison["trained_parameters"]
    file = tmp_path / "merged.safetensors"
    words = f"--from {finished} --merge {out / 'adapter.safetensors'} --out {file}".split()
    assert finetune.main(words) == 0
    merged, best = load_checkpoint(file), load_checkpoint(out)
    assert merged[1] == best[1]
    images = torch.rand(5, 1, 28, 28)
    for head in (0, 1):
        torch.testing.assert_close(merged[0](images, head), best[0](images, head), rtol=0, atol=1e-5)
    assert not torch.equal(best[0](images, 1), load_checkpoint(finished)[0](images))
    assert finetune.main(words) == 2
    assert "would be replaced" in capsys.readouterr().err
    assert finetune.main(f"--from {out} --merge {out / 'adapter.safetensors'} --out {tmp_path / 'x'}".split()) == 4
    assert "was learnt from another checkpoint" in capsys.readouterr().err
    assert finetune.main(f"--from {finished} --merge {out} --out {tmp_path / 'x'}".split()) == 4
    assert "is no adapter" in capsys.readouterr().err
    assert evaluate.main([str(out / "adapter.safetensors")]) == 4
    assert "is an adapter" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--unfreeze-at 2 --replay {tiny}", "--method lora:2 --ema 0.9", "--method head"])
def test_resumed_is_uninterrupted(words, tune, tiny, finished, tmp_path, monkeypatch):
    words = words.format(tiny=tiny)
    whole, _ = tune(words, name="whole")
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        signal_at(patch, [7], signal.SIGINT)
        assert finetune.main(f"--from {finished} --data {tiny} {NEW} --out {out} {words}".split()) == 130
    assert finetune.main(["--resume", str(out), "--quiet"]) == 0
    one, two = (load_file(folder / "best.safetensors") for folder in (whole, out))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (whole / "test.json").read_text() == (out / "test.json").read_text()


def test_a_changed_source_is_not_resumed(tune, finished, tmp_path, tiny, monkeypatch, capsys):
    source = tmp_path / "source.safetensors"
    source.write_bytes((finished / "best.safetensors").read_bytes())
    out = tmp_path / "run"
    assert finetune.main(f"--from {source} --data {tiny} {NEW} --out {out}".split()) == 0
    assert "what " in capsys.readouterr().err  # what it was trained on is not known
    assert json.loads((out / "finetune.json").read_text())["old"] is None
    moved = source.rename(tmp_path / "moved.safetensors")
    assert finetune.main(["--resume", str(out), "--from", str(moved), "--quiet"]) == 0
    source.write_bytes((finished / "last.safetensors").read_bytes())
    capsys.readouterr()
    assert finetune.main(["--resume", str(out), "--quiet"]) == 4
    assert f"{out} began from other weights than those of {source}" in capsys.readouterr().err


def test_shots_and_repeats(finished, tiny, tmp_path, capsys):
    out = tmp_path / "draws"
    words = f"--from {finished} --data {tiny} --classes 5,6,7 --shots 3 --repeats 3 --epochs 2 --out {out} --json"
    assert finetune.main([*words.split(), "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new"]["mean"] == pytest.approx(np.mean(found["accuracies"]["new"]))
    low, high = found["new"]["interval"]
    assert low <= found["new"]["mean"] <= high
    assert len(found["accuracies"]["old"]) == 3
    assert json.loads((out / "draws.json").read_text())["accuracies"]["new"] == found["accuracies"]["new"]
    assert (out / "STATUS").read_text() == "finished\n"
    words = {"classes": "5,6,7", "shots": 3, "epochs": 1}
    one, other = (prepared(finished, tiny, words | {"seed": seed})[0].trainer for seed in (0, 1))
    assert samples(one.train)[1].bincount().tolist() == [3, 3, 3]
    assert one.val is None
    assert not torch.equal(samples(one.train)[0], samples(other.train)[0])


def test_repeats_are_measured_once(finished, tiny, tmp_path, measure, capsys):
    words = f"--from {finished} --data {tiny} --classes 5,6,7 --shots 3 --repeats 2 --epochs 1 --threads 1 --tune on"
    assert finetune.main([*words.split(), "--out", str(tmp_path / "draws")]) == 0
    assert len(measure.asked) == 1
    assert capsys.readouterr().out.count("plans of fused layers: 2 of 2 calls measured in 1.5 s") == 1


@pytest.mark.parametrize("method", ["full", "head"])  # of which the second computes features before it learns
def test_on_a_cpu_no_table_is_read(tune, measure, unreadable_table, method):
    tune(f"--method {method}")
    assert measure.asked == []


def test_scratch_forgets_the_source(finished, tiny):
    run, comparison = prepared(finished, tiny, {"classes": "5,6,7", "method": "scratch"})
    source, _ = load_checkpoint(finished)
    assert not torch.equal(run.trainer.model.features[0].weight, source.features[0].weight)
    assert (comparison.start.old_head, len(run.trainer.model.old_heads)) == (None, 0)
    assert run.info.mean == load_checkpoint(finished)[1].mean


def test_the_same_classes_keep_the_head(finished, tiny):
    run, comparison = prepared(finished, tiny, {})
    source, info = load_checkpoint(finished)
    assert comparison.start.old_head == 0
    assert torch.equal(run.trainer.model.last.weight, source.last.weight)
    assert run.info.classes == info.classes
    assert not run.info.old_heads


def test_two_tasks_in_a_row(tune, tiny, tmp_path):
    first, _ = tune("--method head")
    out = tmp_path / "second"
    line = f"--from {first} --data {tiny} --classes 1,2 --method head --epochs 1 --out {out} --quiet --threads 1"
    assert finetune.main(line.split()) == 0
    model, info = load_checkpoint(out)
    assert [head.classes for head in info.old_heads] == [tuple("56789"), tuple("0123456789")]
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(model(images, 1), load_checkpoint(first)[0](images))
    assert json.loads((out / "finetune.json").read_text())["old"]["before"]["n"] == 25


@pytest.mark.slow
def test_a_backbone(tiny, tmp_path, capsys):
    """Random weights that are said to be; both heads; the checkpoint is one as any other."""
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    start = build("vgg16", side=32)
    weights = tmp_path / "w.pth"
    torch.save({f"features.{name}": tensor for name, tensor in start.features[1].state_dict().items()}, weights)
    out = tmp_path / "run"
    line = f"--from vgg16 --side 32 --data {tiny} --limit 20 --val 0 --method head --hidden 8 --epochs 2 --out {out}"
    assert finetune.main([*line.split(), "--weights", str(weights), "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert f"from vgg16 with the weights of {weights}" in said
    assert "features were computed once" in said
    model, info = load_checkpoint(out)
    assert (info.input_size, info.mean, info.std) == ((1, 28, 28), (0.0,), (1.0,))
    for name, tensor in start.features[1].state_dict().items():
        assert torch.equal(model.features[1].state_dict()[name], tensor)
    data = DeviceData(load(str(tiny)).test, CPU, info.mean, info.std)
    torch.testing.assert_close(
        predict(model, embed(model, data))[0], predict(model, data, batch_size=7)[0], rtol=0, atol=1e-4
    )
    assert channel_stats(load(str(tiny)).train.images)[0] != info.mean
