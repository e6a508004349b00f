"""`mnistfast bench`: what is written, and what is refused."""

import json

import pytest

from convpool.testing.roofline import Peaks
from mnistfast import bench


def test_writes_table_pictures_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mnistfast.measure.workloads.GROWTH", {"batch": (1, 2), "channels": (4,)})
    monkeypatch.setattr("convpool.testing.roofline.peaks", lambda *_: Peaks(1e11, 1e10))
    words, folder = ["--only", "growth", "--seconds", "0.001", "--no-compile", "--json"], tmp_path / "out"
    assert bench.main([*words, "--out", str(folder)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((folder / bench.RESULT).read_text())
    assert [row["name"] for row in result["rows"]] == ["1", "2", "4"]
    assert result["command"] == f"mnistfast bench {' '.join(words)} --out {folder}"
    assert {"setting", "environment"} < result.keys()
    assert (folder / "growth.png").read_bytes().startswith(b"\x89PNG")
    report = (folder / bench.REPORT).read_text()
    assert "![Growth with batch and with channels](growth.png)" in report
    assert "speedup.png" not in report
    assert "GPU: not measured" in report


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--only nothing", "names no workload"),
        ("--seconds 0", "--seconds is 0"),
        ("--threads 0", "--threads is 0"),
        ("--al", "did you mean '--all'"),
        ("time-too", "unexpected argument 'time-too'"),
    ],
)
def test_refuses_in_one_line(words, said, capsys):
    assert bench.main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
