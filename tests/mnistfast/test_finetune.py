"""`mnistfast finetune` from its options to its last line."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mnistfast import finetune
from mnistfast.data import published
from mnistfast.models.adapters import SELECTIONS
from mnistfast.options.methods import METHODS, Method
from mnistfast.runs.checkpoint import load_checkpoint

REFUSED = [
    ("--data DATA", 2, "--from is missing. It takes a run's folder, a checkpoint, or one of vgg16, resnet50"),
    ("--from RUN", 2, "--data is missing"),
    ("--from nowhere --data DATA", 4, "no checkpoint at nowhere"),
    ("--from RUN/state.pt --data DATA", 4, "RUN/state.pt is a pickle file: refused"),
    ("--from RUN --data nowhere/at/all", 3, "no folder or file nowhere/at/all"),
    ("--from RUN --data DATA --method lore:3", 2, "unknown method 'lore' (did you mean 'lora'?)"),
    ("--from RUN --data DATA --method lora", 2, "--method is lora. It takes full, head, last:K, bias, lora:R, scratch"),
    ("--from RUN --data DATA --method head:2", 2, "--method is head:2"),
    ("--from RUN --data DATA --method last:0", 2, "--method is last:0"),
    ("--from RUN --data DATA --method last:9", 2, "--method last:9. lenet5 has 5 layers"),
    ("--from RUN --data DATA --unfreeze-at 3,2", 2, "--unfreeze-at is 3,2. It takes rising epochs from 1"),
    ("--from RUN --data DATA --unfreeze-at 9 --epochs 2", 2, "--unfreeze-at names epoch 9. There are 2"),
    ("--from RUN --data DATA --replay DATA:2", 2, "--replay is DATA:2. It must be OLD:fraction, up to 1"),
    ("--from RUN --data DATA --replay DATA --method head", 2, "--replay with --method head"),
    ("--from RUN --data DATA --replay DATA --drop-old-head", 2, "--replay with --drop-old-head"),
    ("--from RUN --data DATA --old-data kmnist --offline", 7, "no kmnist"),
    ("--from RUN --data DATA --shots 1000", 2, "--shots is 1000. A class has 20 training images"),
    ("--from RUN --data DATA --shots 0", 2, "--shots is 0. It must be at least 1"),
    ("--from RUN --data DATA --lr-mult 0", 2, "--lr-mult is 0.0. It must be above 0"),
    ("--from RUN --data DATA --classes 5,x", 2, "tiny has no class 'x'. It has 0, 1,"),
    ("--from RUN --data DATA --weights w.pth", 2, "--weights is for a backbone"),
    ("--from RUN --data DATA --model lenet5", 2, "unknown option --model"),
    ("--from RUN --merge x", 2, "--merge needs --from and --out"),
]


@pytest.mark.parametrize(("words", "code", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused_in_one_line_before_any_work(words, code, message, finished, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "fashion" in words:  # which a distribution may have installed
        monkeypatch.setitem(published.SETS, "fashion-mnist", replace(published.SETS["fashion-mnist"], folders=()))
        monkeypatch.setenv("MNISTFAST_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("MNISTFAST_DATA", raising=False)
    words, message = (text.replace("RUN", str(finished)).replace("DATA", str(tiny)) for text in (words, message))
    assert finetune.main(words.split()) == code
    error = capsys.readouterr().err
    assert error.startswith(f"mnistfast: error: {message}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_data_check_trains_nothing(finished, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = finetune.main(["--from", str(finished), "--data", str(tiny), "--data-check", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (3 if found["wrong"] else 0)
    assert not list(tmp_path.iterdir())


def test_summary_and_json(finished, tiny, tmp_path, no_pictures, capsys):
    words = f"--from {finished} --data {tiny} --classes 8,9 --epochs 1 --threads 1"
    assert finetune.main([*words.split(), "--out", str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("new accuracy    ") and " before, " in line for line in lines)
    assert any(line.startswith("old accuracy    ") for line in lines)
    assert any("of 61,876 parameters in" in line for line in lines)
    assert "left out 0 training images that are in the source's test set" in lines
    assert lines[-1] == f"next            mnistfast evaluate {tmp_path / 'a'}"
    assert finetune.main([*words.split(), "--out", str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new"]["after"]["n"] == 10
    assert found["method"] == "full"


@pytest.fixture
def first(monkeypatch):
    """A method of one's own, which trains the first K layers and keeps what it learns in an adapter."""
    monkeypatch.setitem(METHODS, "first", Method("first", number="K", words="the first K layers", adapter=True))

    def select(model, layers, count):
        return [[weight for module in layer for weight in module.parameters()] for layer in layers[-count:]]

    monkeypatch.setitem(SELECTIONS, "first", select)


@pytest.mark.usefixtures("first", "no_pictures")
def test_a_method_takes_two_entries(finished, tiny, tmp_path, capsys):
    words = f"--from {finished} --data {tiny} --classes 8,9 --epochs 1 --threads 1".split()
    out, merged = tmp_path / "run", tmp_path / "merged.safetensors"
    assert finetune.main([*words, "--method", "first:1", "--out", str(out)]) == 0
    assert "; first:1: 326 parameters learn" in capsys.readouterr().out  # 6 * 25 + 6 and 84 * 2 + 2
    assert json.loads((out / "finetune.json").read_text())["method"] == "first:1"
    before, after = (load_checkpoint(folder)[0].state_dict() for folder in (finished, out))
    kept = {name for name, weight in before.items() if name in after and torch.equal(after[name], weight)}
    assert before.keys() & after.keys() - kept == {
        "features.0.weight",
        "features.0.bias",
        "head.5.weight",
        "head.5.bias",
    }
    assert load_file(out / "adapter.safetensors").keys() == before.keys() & after.keys() - kept
    assert finetune.main(f"--from {finished} --merge {out / 'adapter.safetensors'} --out {merged}".split()) == 0
    for name, weight in load_checkpoint(merged)[0].state_dict().items():
        assert torch.equal(after[name], weight), name
    assert finetune.main([*words, "--method", "first", "--out", str(tmp_path / "x")]) == 2
    assert "It takes full, head, last:K, bias, lora:R, scratch, first:K" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", ["frozen_body", "fresh"])
def test_what_a_method_says_of_itself_is_done(kind, finished, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "mine", Method("mine", **{kind: True}))
    monkeypatch.setitem(SELECTIONS, "mine", lambda model, layers, count: [])
    words = f"--from {finished} --data {tiny} --classes 8,9 --epochs 1 --threads 1 --method mine".split()
    assert finetune.main([*words, "--replay", "sample", "--out", str(tmp_path / "x")]) == 2
    assert "--replay with --method mine. It has nothing to forget" in capsys.readouterr().err
    assert finetune.main([*words, "--out", str(tmp_path / "run")]) == 0
    assert ("features were computed once" in capsys.readouterr().out) == (kind == "frozen_body")
    model, info = load_checkpoint(tmp_path / "run")
    kept = torch.equal(model.features[0].weight, load_checkpoint(finished)[0].features[0].weight)
    assert (kept, len(info.old_heads)) == ((False, 0) if kind == "fresh" else (True, 1))
    assert not (tmp_path / "run" / "adapter.safetensors").exists()


def test_several_processes_are_refused(finished, tiny, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert finetune.main(["--from", str(finished), "--data", str(tiny)]) == 2
    assert "finetune works in one process" in capsys.readouterr().err
