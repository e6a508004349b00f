"""`mnistfast export`: what is written answers as the model does, and nothing is written that does not."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mnistfast import export
from mnistfast.data.sources import load
from mnistfast.errors import ThresholdError
from mnistfast.models.zoo import MODELS, build
from mnistfast.results import exporter
from mnistfast.runs.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint

CLASSES = tuple("0123456789")


def checkpoint(path, name):
    """Writes a checkpoint of an untrained `name` whose normalisation and temperature both change the logits."""
    torch.manual_seed(0)
    model = build(name)
    channels = model.input_size[0]
    mean, std = tuple(np.linspace(0.1, 0.5, channels)), tuple(np.linspace(0.3, 0.2, channels))
    save_checkpoint(
        path, model.state_dict(), CheckpointInfo(name, model.arguments, CLASSES, mean, std, model.input_size, 1.5)
    )
    return path


def test_pt2_and_safetensors(reader, tmp_path, capsys):
    words = [str(reader), "--format", "safetensors,pt2", "--out", str(tmp_path / "here"), "--json", "--threads", "1"]
    assert export.main(words) == 0
    written = json.loads(capsys.readouterr().out)
    assert [entry["path"] for entry in written] == [
        str(tmp_path / "here" / f"lenet5.{kind}") for kind in ("safetensors", "pt2")
    ]
    for entry in written:
        assert entry["difference"] <= exporter.TOLERANCE
        assert sorted(entry["milliseconds"]) == ["1", "64"]
    digits, labels = load("sample", offline=True).test.images[:200], load("sample", offline=True).test.labels[:200]
    program = torch.export.load(tmp_path / "here" / "lenet5.pt2").module()
    logits = program(torch.from_numpy(digits).float() / 255)
    assert (logits.argmax(1).numpy() == labels).mean() > 0.9
    model, info = load_checkpoint(tmp_path / "here" / "lenet5.safetensors")  # the file is a checkpoint itself
    assert info == load_checkpoint(reader)[1]
    with safe_open(tmp_path / "here" / "lenet5.safetensors", "pt") as opened:
        assert set(opened.keys()) == set(model.state_dict())


@pytest.mark.slow
def test_onnx(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = checkpoint(tmp_path / "lenet5.safetensors", "lenet5")
    assert export.main([str(path), "--format", "onnx"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / 'export' / 'lenet5.onnx'}: ")
    assert "ms for 1 image, " in out
    session = onnxruntime.InferenceSession(tmp_path / "export" / "lenet5.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES)
    assert [session.run(None, {"images": np.zeros((n, 1, 28, 28), np.float32)})[0].shape for n in (1, 7)] == [
        (1, 10),
        (7, 10),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_in_every_format(name, tmp_path):
    pytest.importorskip("onnxscript")
    path = checkpoint(tmp_path / f"{name}.safetensors", name)
    written = exporter.export(str(path), list(exporter.FORMATS), None)
    assert [file.path.suffix for file in written] == [".onnx", ".pt2", ".safetensors"]
    assert max(file.difference for file in written) <= exporter.TOLERANCE


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (lambda logits: logits + 2e-4, "largest difference 2.0e-04 .* 0 of 1,000 labels changed"),
        (lambda logits: logits.roll(1, 1), "[1-9][0-9]+ of 1,000 labels changed"),
        (lambda logits: logits * float("nan"), "largest difference nan"),
    ],
    ids=["off", "rolled", "nan"],
)
def test_a_file_that_differs_is_not_written(bug, message, tmp_path, capsys, monkeypatch):
    forward = exporter.Exported.forward
    monkeypatch.setattr(exporter.Exported, "forward", lambda self, images: bug(forward(self, images)))
    path = checkpoint(tmp_path / "lenet5.safetensors", "lenet5")
    with pytest.raises(ThresholdError, match=message):
        exporter.export(str(path), ["safetensors"], None)
    assert export.main([str(path), "--format", "pt2"]) == 8
    assert "lenet5.pt2 differs: " in capsys.readouterr().err
    assert list((tmp_path / "export").iterdir()) == []


def test_the_gate_feeds_every_batch_size(tmp_path):
    images = exporter.sample_images((1, 28, 28))
    sizes = []

    def run(pixels):
        sizes.append(len(pixels))
        return np.zeros((len(pixels), 10), np.float32)

    exporter.check(run, images, np.zeros((1000, 10), np.float32), tmp_path)
    assert sizes == [1, 7, 64, 928]


def test_sample_images_fit_every_model():
    grey, colour = (exporter.sample_images(size) for size in ((1, 28, 28), (3, 32, 32)))
    np.testing.assert_array_equal(grey, load("sample", offline=True).test.images)
    assert (colour.shape, colour.dtype) == ((1000, 3, 32, 32), np.uint8)
    assert np.abs(colour[:, 0].astype(int) - colour[:, 1]).mean() > 10


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("nowhere", 4, "no checkpoint at nowhere"),
        ("RUN --format onx", 2, "unknown format 'onx' (did you mean 'onnx'?)"),
        ("RUN --format pt2 --out TAKEN", 2, "lenet5.pt2 would be replaced. FIX: --overwrite"),
        ("RUN --format pt2 --out RUN/STATUS/x", 7, "cannot make the folder"),
    ],
)
def test_refused(words, code, message, trained, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "lenet5.pt2").write_text("mine")
    words = words.replace("RUN", str(trained)).replace("TAKEN", str(tmp_path / "taken"))
    assert export.main(words.split()) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "taken" / "lenet5.pt2").read_text() == "mine"


def test_without_the_packages(trained, capsys, monkeypatch):
    monkeypatch.setitem(exporter.PACKAGES, "onnx", ("onnx_that_is_not_there",))
    assert export.main([str(trained), "--quiet"]) == 6
    assert "--format onnx needs onnx_that_is_not_there. Not installed. FIX: pip install" in capsys.readouterr().err
    assert not (trained / "export").exists()
