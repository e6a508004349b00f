"""`mnistfast evaluate` against what `train` said of the same weights."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from mnistfast import evaluate
from mnistfast.data.datasets import Split, from_splits
from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.models.zoo import build
from mnistfast.runs.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from mnistfast.training.inference import predict


def test_agrees_with_train(trained, capsys):
    assert evaluate.main([str(trained)]) == 0
    out = capsys.readouterr().out
    folder = trained / "evaluate-tiny"
    assert sorted(path.name for path in folder.iterdir()) == ["confusion.png", "errors.png", "evaluate.json"]
    scores, test = (json.loads(path.read_text()) for path in (folder / "evaluate.json", trained / "test.json"))
    assert {key: scores[key] for key in test} == test
    assert f"accuracy      {100 * test['accuracy']:.2f} %" in out
    assert "uncalibrated  negative log-likelihood" in out
    assert out.splitlines()[-1].startswith(f"written       {folder}/evaluate.json, {folder}/confusion.png")
    assert (folder / "errors.png").read_bytes()[:4] == b"\x89PNG"


def test_checkpoint_out_and_json(trained, tmp_path, capsys):
    words = [str(trained / "last.safetensors"), "--data", "sample", "--out", str(tmp_path / "here"), "--json"]
    assert evaluate.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["data"]) == (1000, "sample")
    assert [path.endswith("last.safetensors") for path in found["checkpoints"]] == [True]
    assert found["alone"] == [found["accuracy"]]
    assert json.loads((tmp_path / "here" / "evaluate.json").read_text()) == found


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("RUN OTHER", r"evaluate-tiny\+with-other\+[0-9a-f]{8}"),
        ("RUN/last.safetensors", r"evaluate-tiny\+last"),
        ("RUN --tta 1", r"evaluate-tiny\+tta1"),
        ("RUN --classes 3,5", r"evaluate-tiny\+classes-3,5"),
        ("RUN --data ELSEWHERE/tiny", r"evaluate-tiny\+[0-9a-f]{8}"),
    ],
)
def test_another_question_leaves_the_answer_to_this_one(words, name, trained, tiny, tmp_path, no_pictures):
    assert evaluate.main([str(trained), "--quiet"]) == 0
    answer = (trained / "evaluate-tiny" / "evaluate.json").read_bytes()
    other = shutil.copytree(trained, tmp_path / "other")
    shutil.copytree(tiny, tmp_path / "elsewhere" / "tiny")
    places = {"RUN": trained, "OTHER": other, "ELSEWHERE": tmp_path / "elsewhere"}
    for place, path in places.items():
        words = words.replace(place, str(path))
    assert evaluate.main([*words.split(), "--quiet"]) == 0
    assert (trained / "evaluate-tiny" / "evaluate.json").read_bytes() == answer
    [made] = {path.name for path in trained.glob("evaluate-*")} - {"evaluate-tiny"}
    assert re.fullmatch(name, made)
    assert json.loads((trained / made / "evaluate.json").read_text())["data"] == "tiny"


def test_several_answer_with_the_mean_of_their_probabilities(trained, reader, no_pictures, tmp_path, capsys):
    paths = [trained, reader, trained / "last.safetensors"]
    words = [*map(str, paths), "--data", "sample", "--out", str(tmp_path)]
    assert evaluate.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    test = load("sample").test
    shares, alone = [], []
    for path in paths:
        model, info = load_checkpoint(path)
        logits, labels = predict(model, DeviceData(test, torch.device("cpu"), info.mean, info.std))
        shares.append((logits.double() / info.temperature).softmax(1))
        alone.append((logits.argmax(1) == labels).double().mean().item())
    mean = sum(shares) / 3
    assert found["alone"] == alone
    assert found["accuracy"] == (mean.argmax(1) == labels).double().mean().item()
    assert found["nll"] == pytest.approx(-mean[range(len(labels)), labels].log().mean().item())
    assert evaluate.main(words) == 0
    assert capsys.readouterr().out.count("alone  ") == 3


def test_tta_answers_with_the_mean_over_nine_places(trained, no_pictures, tmp_path, capsys):
    assert evaluate.main([str(trained), "--data", "sample", "--out", str(tmp_path), "--tta", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    test, (model, info) = load("sample").test, load_checkpoint(trained)
    padded = np.pad(test.images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    shares = []
    for y in range(3):
        for x in range(3):
            place = Split(padded[:, :, y : y + 28, x : x + 28].copy(), test.labels)
            logits, labels = predict(model, DeviceData(place, torch.device("cpu"), info.mean, info.std))
            shares.append((logits.double() / info.temperature).softmax(1))
    mean = sum(shares) / 9
    assert found["accuracy"] == (mean.argmax(1) == labels).double().mean().item()
    assert found["nll"] == pytest.approx(-mean[range(len(labels)), labels].log().mean().item())
    assert (found["tta"], found["temperature"]) == (1, info.temperature)


def test_only_models_of_the_same_classes_answer_together(trained, tmp_path, capsys):
    model = build("lenet5", classes=3)
    info = CheckpointInfo("lenet5", model.arguments, ("a", "b", "c"), (0.1,), (0.3,), model.input_size)
    save_checkpoint(tmp_path / "other.safetensors", model.state_dict(), info)
    assert evaluate.main([str(trained), str(tmp_path / "other.safetensors")]) == 4
    assert "It answers a, b, c; " in capsys.readouterr().err


def test_threshold(trained, no_pictures, capsys):
    assert evaluate.main([str(trained), "--min-accuracy", "1", "--quiet"]) == 8
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "% < 100.00 %. --min-accuracy asks for more" in captured.err
    assert evaluate.main([str(trained), "--min-accuracy", "0.01", "--quiet"]) == 0


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("nowhere", 4, "no checkpoint at nowhere"),
        ("RUN/state.pt", 4, "is a pickle file: refused"),
        ("RUN/test.json", 4, "is damaged"),
        ("RUN --min-accuracy 98", 2, "--min-accuracy is 98.0. It must be a fraction between 0 and 1"),
        ("RUN --batch-size 0", 2, "--batch-size is 0"),
        ("RUN --tta 5", 2, "--tta is 5. It must be from 0 to 4"),
        ("RUN --data nowhere/at/all", 3, "no folder"),
        ("RUN --dataa sample", 2, "unknown option --dataa (did you mean '--data'?)"),
        ("", 2, "the following arguments are required: RUN|CKPT"),
        ("RUN --out RUN/STATUS/x", 7, "cannot make the folder"),
    ],
)
def test_refused(words, code, message, trained, capsys):
    assert evaluate.main(words.replace("RUN", str(trained)).split()) == code
    error = capsys.readouterr().err
    assert message in error or (not words and "required" in error)
    assert error.count("\n") == 1


def test_images_of_another_size(trained, write_images, tmp_path, capsys):
    images, labels = np.random.default_rng(0).integers(0, 256, (20, 8, 8)), np.arange(20) % 10
    small = write_images(tmp_path / "small", images, labels, images, labels)
    assert evaluate.main([str(trained), "--data", str(small)]) == 3
    assert "the images of small are 8x8x1, model lenet5 takes 28x28x1" in capsys.readouterr().err


def test_labels_that_the_model_does_not_know(trained, tiny, capsys, monkeypatch):
    dataset = load(str(tiny))
    dataset.test.labels[3] = 12
    monkeypatch.setattr("mnistfast.results.evaluation.load", lambda *args, **kwargs: dataset)
    assert evaluate.main([str(trained)]) == 3
    assert "label 12 at index 3. The model has 10 classes" in capsys.readouterr().err


def test_classes_of_other_names_are_told(trained, tiny, no_pictures, monkeypatch, capsys):
    """They may be the same under other names: so they are scored, by number."""
    of_letters = from_splits(tiny, load(str(tiny)).train, load(str(tiny)).test, classes=tuple("abcdefghij"))
    monkeypatch.setattr("mnistfast.results.evaluation.load", lambda *_, **__: of_letters)
    assert evaluate.main([str(trained), "--json"]) == 0
    notice = json.loads(capsys.readouterr().out)["notice"]
    assert "(a, b, c, d, e, ...) stand for the model's (0, 1, 2, 3, 4, ...) by number." in notice


@pytest.mark.parametrize("content", [b"a: [", b"", b"[1, 2]", b"\xff\xfe", b"data: 5"])
def test_a_damaged_configuration(content, trained, capsys):
    (trained / "config.yaml").write_bytes(content)
    assert evaluate.main([str(trained)]) == 4
    error = capsys.readouterr().err
    assert "config.yaml is damaged" in error
    assert error.count("\n") == 1
