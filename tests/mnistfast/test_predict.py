"""`mnistfast predict` on folders, files and standard input, good ones and bad ones."""

import csv
import io
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mnistfast import predict
from mnistfast.data.sources import load


@pytest.fixture(scope="module")
def sample():
    """The sample's test split."""
    return load("sample", offline=True).test


@pytest.fixture
def folder(sample, tmp_path):
    """Six digits in two folders (three light on dark, three inverted and larger), and what is no digit."""
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    for index in range(6):
        image = Image.fromarray(sample.images[index, 0])
        if index % 2:
            image = Image.eval(image, lambda grey: 255 - grey).resize((140, 140))
        image.save(root / ("more" if index > 2 else "") / f"{index}.png")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("L", (99, 99), 255).save(root / "blank.JPG")
    (root / "notes.txt").write_text("no picture")
    return root


def right(labels, sample):
    """Tells whether the six digits were read; one is left to the model, which is no good one."""
    return len(labels) == 6 and (np.array(labels).astype(int) == sample.labels[:6]).sum() >= 5


def run(capsys, *words):
    code = predict.main([*map(str, words)])
    captured = capsys.readouterr()
    return SimpleNamespace(code=code, out=captured.out, err=captured.err)


def test_text(folder, reader, sample, capsys):
    done = run(capsys, folder, "--checkpoint", reader)
    lines = done.out.splitlines()
    assert right([line.split(": ")[1][0] for line in lines], sample)
    assert lines[0].startswith(f"{folder / '0.png'}: ")
    assert lines[0].endswith("; taken as it is")
    assert "; dark on light, inverted, ink " in lines[1]
    assert done.code == 3
    assert done.err.count("\n") == 1
    assert "2 of 8 pictures could not be read: " in done.err
    assert f"{folder / 'blank.JPG'} (the image is blank)" in done.err
    assert f"{folder / 'broken.png'} (cannot identify image)" in done.err


def test_json(folder, reader, sample, capsys):
    done = run(capsys, folder, "--checkpoint", reader, "--json", "--top-k", 2)
    found = json.loads(done.out)
    assert right([answer["label"] for answer in found["answers"]], sample)
    assert {len(answer["top"]) for answer in found["answers"]} == {2}
    assert [answer["inverted"] for answer in found["answers"]] == [False, True] * 3
    assert [failure["file"] for failure in found["failed"]] == [str(folder / "blank.JPG"), str(folder / "broken.png")]
    assert json.loads(done.err)["code"] == done.code == 3


def test_csv(folder, reader, capsys):
    done = run(capsys, folder / "0.png", folder / "1.png", "--checkpoint", reader, "--csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0
    assert [row["label"] for row in rows] == [row["class_1"] for row in rows]
    assert [row["inverted"] for row in rows] == ["False", "True"]
    assert float(rows[0]["probability_1"]) >= float(rows[0]["probability_2"]) >= float(rows[0]["probability_3"])


def test_probabilities_are_the_calibrated_ones(folder, reader, sample, capsys):
    from mnistfast.runs.checkpoint import load_checkpoint

    model, info = load_checkpoint(reader)
    assert info.temperature != 1
    done = run(capsys, folder / "0.png", "--checkpoint", reader, "--json", "--top-k", 10)
    import torch

    pixels = (torch.from_numpy(sample.images[:1]) / 255 - info.mean[0]) / info.std[0]
    wanted = (model(pixels).double() / info.temperature).softmax(1)[0]
    for entry in json.loads(done.out)["answers"][0]["top"]:
        assert entry["probability"] == pytest.approx(wanted[int(entry["label"])].item(), abs=1e-6)


def test_reject_below(folder, reader, capsys):
    done = run(capsys, folder / "0.png", "--checkpoint", reader, "--reject-below", 1)
    assert done.code == 0
    assert ": rejected (" in done.out
    done = run(capsys, folder / "0.png", "--checkpoint", reader, "--reject-below", 1, "--json")
    [answer] = json.loads(done.out)["answers"]
    assert (answer["label"], answer["rejected"]) == (None, True)


def test_views_are_written_beside_nothing_of_the_users(folder, reader, sample, capsys):
    shutil.copy(folder / "0.png", folder / "more" / "0.png")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for _ in range(2):  # a second time the views are not taken for pictures
        assert run(capsys, folder, "--checkpoint", reader, "--save-view", folder).out.count("\n") == 7
    assert {path: path.read_bytes() for path in before} == before
    names = ["0-2.view.png", "0.view.png", *(f"{index}.view.png" for index in range(1, 6))]
    assert sorted(path.name for path in set(folder.rglob("*.*")) - set(before)) == names
    with Image.open(folder / "0.view.png") as view:
        np.testing.assert_array_equal(np.asarray(view), sample.images[0, 0])


def test_standard_input(folder, reader, sample, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO((folder / "1.png").read_bytes())))
    assert run(capsys, "-", "--checkpoint", reader).out.startswith(f"-: {sample.labels[1]} (")


def test_the_newest_run_reads(folder, reader, sample, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = run(capsys, folder / "0.png")
    assert (done.code, done.err) == (4, "mnistfast: error: no run in runs. FIX: mnistfast train makes one, "
                                        "--checkpoint names another\n")  # fmt: skip
    shutil.copytree(reader, tmp_path / "runs" / "new")
    shutil.copytree(reader, tmp_path / "runs" / "old")
    (tmp_path / "runs" / "old" / "best.safetensors").write_bytes(b"")
    os.utime(tmp_path / "runs" / "old" / "best.safetensors", (0, 0))
    done = run(capsys, folder / "0.png")
    assert done.err == "reading with runs/new/best.safetensors\n"
    assert done.out.startswith(f"{folder / '0.png'}: {sample.labels[0]} (")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("nowhere.png", 3, "nowhere.png: no such file"),
        ("FOLDER/notes.txt", 3, "notes.txt: cannot identify image. Readable: PNG"),
        ("FOLDER/blank.JPG", 3, "blank.JPG: the image is blank"),
        ("/dev/null", 3, "/dev/null: not a regular file"),
        ("PIPE", 3, "pipe: not a regular file"),
        ("EMPTY", 3, "no pictures in "),
        ("FOLDER --checkpoint nowhere", 4, "no checkpoint at nowhere"),
        ("FOLDER --top-k 0", 2, "--top-k is 0. It must be at least 1"),
        ("FOLDER --reject-below 95", 2, "--reject-below is 95.0. It must be a probability between 0 and 1"),
        ("FOLDER --csv --json", 2, "--csv and --json exclude each other"),
        ("FOLDER --save-view FOLDER/0.png", 7, "cannot make the folder"),
        ("", 2, "the following arguments are required: IMG|DIR|-"),
    ],
)
def test_refused(words, code, message, folder, reader, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, path in (("FOLDER", folder), ("EMPTY", tmp_path / "empty"), ("PIPE", tmp_path / "pipe")):
        words = words.replace(name, str(path))
    words = words.split()
    done = run(capsys, *words, *([] if "--checkpoint" in words else ["--checkpoint", reader]))
    assert done.code == code
    assert message in done.err
    assert done.err.count("\n") == 1
