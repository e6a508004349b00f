"""Names that come from files, made to garble what they get into: shown everywhere, obeyed nowhere."""

import csv
import io
import json
import re
import sys
import unicodedata

import pytest
from PIL import Image

from mnistfast import evaluate, predict, train
from mnistfast.data.sources import load

CLASSES = (
    "\x1b[31mred",
    "two\nlines",
    "a|b",
    "<script>",
    "$x$",
    "$\\frac$",  # bad TeX
    "`code`",
    "\u202egnp.exe",
    "![a](b)",
    "\u00e9\u3000\u05d0",  # ordinary
)


def harmless(text):
    """Tells whether no character of `text` moves, hides or turns others, but for line ends."""
    return not [c for c in text.replace("\n", "") if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A class-folder set and a run on it, both with such names; what training printed; the folder of the set."""
    root = tmp_path_factory.mktemp("hostile")
    data, out = root / "da\x1b[2Jta`|<b>$", root / "ru\x1b[2Jn\n`|<b>$"
    sample = load("sample", offline=True)
    for part, split, count in (("train", sample.train, 6), ("test", sample.test, 2)):
        for number, name in enumerate(CLASSES):
            folder = data / part / name
            folder.mkdir(parents=True)
            for image in split.images[split.labels == number][:count, 0]:
                Image.fromarray(image).save(folder / f"{len(list(folder.iterdir()))}.png")
    words = f"--model lenet5 --epochs 1 --batch-size 20 --val 10 --threads 1 --data {data} --out".split(" ")
    with pytest.MonkeyPatch.context() as patch:
        streams = {name: io.StringIO() for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        assert train.main([*words, str(out)]) == 0
    return data, out, "".join(stream.getvalue() for stream in streams.values())


def test_training_and_its_folder(hostile):
    _, out, said = hostile
    assert harmless(said)
    for name in ("log.txt", "STATUS", "REPORT.md"):
        assert harmless((out / name).read_text())
    dated = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
    assert all(dated.match(line) for line in (out / "log.txt").read_text().splitlines())
    for name in ("confusion.png", "errors.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_the_report_keeps_its_shape(hostile):
    report = (hostile[1] / "REPORT.md").read_text()
    rows = [line for line in report.splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    table = next(index for index, row in enumerate(cells) if row[0] == " class ")
    assert {len(row) for row in cells[table : table + 12]} == {5}
    names = [row[0].strip() for row in cells[table + 2 : table + 12]]
    assert "a\\|b" in names
    assert CLASSES[-1] in names
    assert "<script" not in report
    assert re.search(r"^Again: ``mnistfast train .*da\\x1b\[2Jta`\|<b>\$.*``$", report, re.MULTILINE)
    assert "](b)" not in report.replace("\\](b)", "")


@pytest.mark.usefixtures("no_pictures")
def test_evaluate(hostile, tmp_path, capsys):
    assert evaluate.main([str(hostile[1]), "--out", str(tmp_path / "scores"), "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert harmless(out)
    first = next(number for number, line in enumerate(out.splitlines()) if line.startswith("class "))
    rows = out.splitlines()[first + 1 : first + 11]
    assert sorted({row.rsplit(None, 7)[0].strip() for row in rows}) == sorted(
        "".join(c if c.isprintable() or c == "\u3000" else c.encode("unicode_escape").decode() for c in name)
        for name in CLASSES
    )
    scores = json.loads((tmp_path / "scores" / "evaluate.json").read_text())
    assert {row["class"] for row in scores["per_class"]} == set(CLASSES)


def test_data_check(hostile, capsys):
    train.main(["--data", str(hostile[0]), "--data-check"])
    captured = capsys.readouterr()
    assert harmless(captured.out + captured.err)
    assert sum(line.startswith("class ") for line in captured.out.splitlines()) == len(CLASSES)


def test_predict(hostile, capsys, monkeypatch):
    pictures, words = (
        hostile[0] / "test" / CLASSES[1],
        ["--checkpoint", str(hostile[1]), "--threads", "1", "--top-k", "10"],
    )
    predict.main([str(pictures), *words])
    captured = capsys.readouterr()
    assert harmless(captured.out + captured.err)
    count = len(captured.out.splitlines())
    predict.main([str(pictures), *words, "--csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert len(rows) == count
    assert {row[f"class_{place}"] for row in rows for place in range(1, 11)} == set(CLASSES)  # data as they are
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    predict.main([str(pictures), *words, "--csv"])
    out = capsys.readouterr().out
    assert harmless(out)
    assert len(out.splitlines()) == count + 1
