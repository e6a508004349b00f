"""`mnistfast bench`: what is written, and what is refused."""

import json

import pytest

from convpool.testing.roofline import Peaks
from mnistfast import bench
from mnistfast.measure.load import Load


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


@pytest.fixture
def two_sizes(monkeypatch):
    """Makes two layers all there is to measure."""
    monkeypatch.setattr("mnistfast.measure.workloads.GROWTH", {"batch": (1,), "channels": (4,)})
    monkeypatch.setattr("convpool.testing.roofline.peaks", lambda *_: Peaks(1e11, 1e10))


WORDS = ["--only", "growth", "--seconds", "0.001", "--no-compile", "--strict"]


@pytest.mark.usefixtures("two_sizes")
def test_what_is_not_steady_is_named_after_all_is_written(times, tmp_path, capsys):
    times["convpool"] = [1e-3, 51.08e-3]
    assert bench.main([*WORDS, "--out", str(tmp_path)]) == 8
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if "error" in line]
    assert "not steady: growth with batch: 1; growth with channels: 4. " in line
    assert {file.name for file in tmp_path.iterdir()} == {"REPORT.md", "bench.json", "growth.png"}
    kept = json.loads((tmp_path / bench.RESULT).read_text())
    assert [row["unsteady"].keys() for row in kept["rows"]] == [{"convpool"}] * 2
    report = (tmp_path / bench.REPORT).read_text()
    assert "- growth with batch: 1: convpool ± 2504 %" in report
    assert "1.00 ms ± 2504 %, not steady   times faster than eager: not steady / 1.00" in shown.out
    assert "  convpool, channels_last          1.00 ms (1.00 to 1.00)\n" in shown.out


@pytest.mark.usefixtures("two_sizes")
def test_without_strict_it_is_marked_alone(times, tmp_path, capsys):
    times["eager"] = [1e-3, 51.08e-3]
    words = [word for word in WORDS if word != "--strict"]
    assert bench.main([*words, "--out", str(tmp_path)]) == 0
    assert "times faster than eager: not steady, than the best other: " in capsys.readouterr().out


@pytest.mark.usefixtures("two_sizes", "times")
def test_strict_lets_pass_what_is_steady(tmp_path, capsys):
    assert bench.main([*WORDS, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "1.00 ms ± 0 %   times faster than eager: 1.00 / 1.00, than the best other: 1.00 / 1.00" in shown
    assert "not steady" not in shown + (tmp_path / bench.REPORT).read_text()


@pytest.mark.usefixtures("two_sizes", "times")
@pytest.mark.parametrize(("average", "warned"), [(0.2, False), (1.9, True)])
def test_other_work_is_warned_of(monkeypatch, tmp_path, capsys, average, warned):
    monkeypatch.setattr("mnistfast.measure.load.now", lambda: Load(average, 1))
    assert bench.main([*WORDS, "--threads", "1", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].endswith(f", load {average} on 1 CPU")
    assert shown.err == f"mnistfast: warning: load {average} on 1 CPU: other work shares them\n" * warned
    assert f", load {average} on 1 CPU before, {average} after." in (tmp_path / bench.REPORT).read_text()


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
