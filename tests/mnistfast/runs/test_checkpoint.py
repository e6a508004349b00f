"""Checkpoints: what comes back, and what is refused with which words."""

import json
import struct
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from mnistfast.errors import CheckpointError
from mnistfast.models.zoo import build
from mnistfast.runs.checkpoint import (
    CheckpointInfo,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from mnistfast.runs.integrity import BLANK, FORMAT_VERSION, seal

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
    """Changes the metadata of a safetensors file, and its digest to fit; None removes a key."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    metadata = {**header["__metadata__"], "digest": BLANK.decode(), **changes}
    header["__metadata__"] = {key: value for key, value in metadata.items() if value is not None}
    text = json.dumps(header, separators=(",", ":")).encode()
    changed = bytearray(struct.pack("<Q", len(text)) + text + content[8 + size :])
    at = changed.find(BLANK)
    if at > 0:
        seal(memoryview(changed), at)
    path.write_bytes(changed)


def test_newer_format(saved):
    rewrite_header(saved[0], format_version=str(FORMAT_VERSION + 1))
    with pytest.raises(CheckpointError, match=r"has format 3, this version reads up to 2. FIX: update"):
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


@pytest.mark.parametrize("version", ["0", "-1", "1.5", "two", "", "\N{SUPERSCRIPT TWO}", "1_0", " 1", "9" * 30, "[]"])
def test_odd_versions(saved, version):
    rewrite_header(saved[0], format_version=version)
    with pytest.raises(CheckpointError, match=r"is no checkpoint of mnistfast. Its format's version is"):
        load_checkpoint(saved[0])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"classes": json.dumps([*"012345678", "8"])}, "classes, of which two have one name"),
        ({"std": "[1e-300]"}, "std"),
        ({"std": "[0.0]"}, "std"),
        ({"std": "[NaN]"}, "std"),
        ({"mean": "[Infinity]"}, "mean"),
        ({"mean": "[-3.0]"}, "mean"),
        ({"temperature": "1e-30"}, "temperature"),
        ({"temperature": "NaN"}, "temperature"),
        ({"run": "5"}, "run"),
        ({"metrics": "[" * 100_000}, "maximum recursion depth"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_cannot_be(saved, changes, word):
    rewrite_header(saved[0], **changes)
    with pytest.raises(CheckpointError, match=f"Its header lacks or garbles {word}"):
        load_checkpoint(saved[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(saved, value):
    path, model = saved
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights["head.2.bias"][3] = value
    save_checkpoint(path, weights, INFO)
    with pytest.raises(CheckpointError, match=r"is damaged. A value of head.2.bias is not a finite number"):
        load_checkpoint(path)


def test_a_variance_below_zero(tmp_path):
    model = build("accurate")
    model.features[1].running_var[5] = -1e-9
    info = replace(INFO, model="accurate", arguments=model.arguments)
    save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), info)
    with pytest.raises(CheckpointError, match=r"A variance of features.1.running_var is below 0"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_tensors_of_another_type(saved):
    path, model = saved
    save_checkpoint(path, {name: weight.half() for name, weight in model.state_dict().items()}, INFO)
    with pytest.raises(CheckpointError, match=r"features.0.bias: float16 \(6,\) instead of float32 \(6,\)"):
        load_checkpoint(path)


def test_one_of_the_new_version_without_its_digest_is_damaged(saved):
    rewrite_header(saved[0], digest=None)
    with pytest.raises(CheckpointError, match=r"is damaged. It has lost its digest"):
        load_checkpoint(saved[0])


def test_one_from_before_digests_is_read_and_said_once(saved, caplog):
    path, model = saved
    old = {key: value for key, value in INFO.to_header().items() if key not in ("run", "old_heads")}
    path.write_bytes(save(model.state_dict(), metadata=old | {"format_version": "1"}))
    for _ in range(2):
        again, info = load_checkpoint(path)
    assert torch.equal(again.state_dict()["head.0.weight"], model.state_dict()["head.0.weight"])
    assert info == INFO
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was written before files had a digest: damage in it would not be noticed"
    ]


def test_a_checkpoint_in_the_place_of_another(saved, tmp_path):
    """Of one run, or of another; under a name of its own it may lie anywhere."""
    path, model = saved
    save_checkpoint(path.with_name("last.safetensors"), model.state_dict(), replace(INFO, run="a"))
    save_checkpoint(path, model.state_dict(), replace(INFO, run="a"))
    for env, right in (('{"run": "a"}', True), ("{}", True), ("[", True), ('{"run": "b"}', False)):
        path.with_name("env.json").write_text(env)
        if right:
            load_checkpoint(path)
        else:
            with pytest.raises(CheckpointError, match=r"is another run's. .*env.json is of run b, this file of run a"):
                load_checkpoint(path)
    path.rename(path.with_name("teacher.safetensors"))
    load_checkpoint(path.with_name("teacher.safetensors"))
    path.with_name("last.safetensors").rename(path)
    path.with_name("env.json").unlink()
    with pytest.raises(CheckpointError, match=r"was written as last.safetensors. It is in the place of another"):
        load_checkpoint(path)


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
    with pytest.raises(CheckpointError, match=r"head.4.bias: float32 \(26,\) instead of float32 \(10,\)"):
        load_checkpoint(path)
