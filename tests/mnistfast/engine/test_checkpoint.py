"""Checkpoints: what comes back, and what is refused with which words."""

import json
import struct
from dataclasses import replace

import pytest
import torch

from mnistfast.engine.checkpoint import (
    FORMAT_VERSION,
    CheckpointInfo,
    find_checkpoint,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
)
from mnistfast.errors import CheckpointError
from mnistfast.models.zoo import build

DIGITS = tuple("0123456789")
ARGUMENTS = {"classes": 10, "dropout": 0.25}
INFO = CheckpointInfo("lenet5", ARGUMENTS, DIGITS, (0.13,), (0.31,), (1, 28, 28), 1.25, {"epoch": 3, "val_loss": 0.1})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "runs" / "one" / "best.safetensors"
    path.parent.mkdir(parents=True)
    model = build("lenet5", **ARGUMENTS)
    save_checkpoint(path, model.state_dict(), INFO)
    return path, model


def test_round_trip(saved):
    path, model = saved
    again, info = load_checkpoint(path)
    assert info == INFO
    assert not again.training
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(again(images), model.eval()(images))


def test_run_folder_stands_for_its_best(saved):
    path, _ = saved
    assert find_checkpoint(path.parent) == path


def test_missing_names_the_runs(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*two. Runs here: .*one \(newest last\)"):
        load_checkpoint(saved[0].parent.parent / "two")
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*best.safetensors. Runs here"):
        load_checkpoint(tmp_path / "runs")


def test_missing_without_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"There are no runs here. FIX: mnistfast train"):
        load_checkpoint("nothing")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated(saved, keep):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path)


def test_garbage(saved):
    path, _ = saved
    path.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path)


def test_pickle_is_refused(saved):
    path, model = saved
    for legacy in (False, True):
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match="is a pickle file: refused"):
            load_checkpoint(path)


def test_a_header_whose_length_looks_like_a_pickle(saved):
    """One length in 32 (they are multiples of 8) begins with the byte that pickles begin with."""
    path, model = saved
    for note in range(0, 256, 8):
        save_checkpoint(path, model.state_dict(), replace(INFO, metrics={"note": "x" * note}))
        if path.read_bytes()[:1] == b"\x80":
            load_checkpoint(path)
            return
    raise AssertionError("no header had that length")


def rewrite_header(path, **changes):
    """Changes the metadata of a safetensors file; None removes a key."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    metadata = {**header["__metadata__"], **changes}
    header["__metadata__"] = {key: value for key, value in metadata.items() if value is not None}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def test_newer_format(saved):
    rewrite_header(saved[0], format_version=str(FORMAT_VERSION + 1))
    with pytest.raises(CheckpointError, match=r"has format 2, this version reads up to 1. FIX: update"):
        load_checkpoint(saved[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": None},
        {"mean": None},
        {"mean": "1"},
        {"classes": "["},
        {"arguments": "0.5"},
        {"arguments": '{"classes": 10, "old_classes": 5}'},
    ],
)
def test_foreign_header(saved, changes):
    rewrite_header(saved[0], **changes)
    with pytest.raises(CheckpointError, match="is no checkpoint of mnistfast"):
        load_checkpoint(saved[0])


def test_unknown_model(saved):
    rewrite_header(saved[0], model='"resnet"')
    with pytest.raises(CheckpointError, match="unknown model 'resnet'"):
        load_checkpoint(saved[0])


def test_tensors_of_another_model(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, build("cnn2").state_dict(), INFO)
    with pytest.raises(CheckpointError, match=r"do not fit model lenet5. features.0.bias: ") as caught:
        load_checkpoint(path)
    assert caught.value.why.count(" instead of ") == 3


def test_wrong_number_of_classes(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, build("lenet5", classes=26).state_dict(), replace(INFO, arguments={"classes": 10}))
    with pytest.raises(CheckpointError, match=r"head.4.bias: \(26,\) instead of \(10,\)"):
        load_checkpoint(path)


def test_state_round_trip(tmp_path):
    path = tmp_path / "state.pt"
    state = {"step": 3, "best": None, "rng": torch.get_rng_state(), "model": {"w": torch.rand(2)}, "seconds": 1.5}
    save_state(path, state)
    again = load_state(path)
    assert torch.equal(again["model"]["w"], state["model"]["w"])
    assert (again["step"], again["best"], again["seconds"]) == (3, None, 1.5)
    assert torch.load(path, weights_only=True)["step"] == 3


def test_state_missing_damaged_newer(tmp_path):
    path = tmp_path / "state.pt"
    with pytest.raises(CheckpointError, match="nothing to resume"):
        load_state(path)
    save_state(path, {"step": 1, "x": torch.rand(100)})
    whole = path.read_bytes()
    for damaged in (b"", whole[:-50], whole[:100], b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            load_state(path)
    torch.save({"format_version": FORMAT_VERSION + 1}, path)
    with pytest.raises(CheckpointError, match="has format 2"):
        load_state(path)


class Evil:
    def __reduce__(self):
        return (print, ("run by the pickle",))


def test_state_runs_no_code(tmp_path, capsys):
    torch.save({"format_version": 1, "x": Evil()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_state(tmp_path / "state.pt")
    assert capsys.readouterr().out == ""
