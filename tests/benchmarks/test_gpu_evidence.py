"""Whatever a step does, its fault is named, the other steps run and the result can be read."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_evidence
from benchmarks.gpu_steps import children
from benchmarks.gpu_steps.children import Run, Setting
from benchmarks.gpu_steps.result import Result, read
from benchmarks.gpu_steps.table import STEPS, Step, box

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]


def step(name: str, share: float = 1, row_seconds: float = 60) -> Step:
    return Step(name, f"tests.benchmarks.faulty_steps:{name}", share, row_seconds)


def taken(folder: Path, *steps: Step, seconds: float = 120) -> tuple[dict, dict]:
    """Run steps; the result's rows by step, and how the steps ended."""
    result = Result(folder / "evidence.json", {})
    log = folder / "log.txt"
    log.touch()
    Run(steps, Setting("cpu", "", time.monotonic() + seconds), result, log).run()
    result.finish()
    found = read(folder / "evidence.json")
    assert found["finished"]
    rows = {each.name: [row for row in found["rows"] if row["step"] == each.name] for each in steps}
    return rows, {name: how["ended"] for name, how in found["steps"].items()}


@pytest.mark.slow
def test_what_raises_is_named_and_the_rest_runs(tmp_path):
    rows, ended = taken(tmp_path, step("raises"), step("row_raises"), step("good"))
    assert ended == {"raises": "ValueError: planted: the step itself", "row_raises": "done", "good": "done"}
    assert "planted: a row" in rows["row_raises"][0]["failed"]
    assert "failed" not in rows["row_raises"][1]
    assert [row["square"] for row in rows["good"]] == [0, 1, 4]


def test_a_step_gets_its_share_of_the_time_left():
    first, second = step("good", share=1), step("good", share=3)
    assert box(first, [second], 100) == 25
    assert box(second, [], 100) == 100


def test_a_write_that_dies_midway_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "evidence.json"
    result = Result(file, {"minutes": 1})
    result.add("good", {"n": 1})
    result.ended("good", "done", 1)

    def half(self: Path, text: str) -> None:
        self.write_bytes(text[: len(text) // 2].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        result.finish()
    found = read(file)
    assert (found["minutes"], found["finished"], found["rows"]) == (1, False, [{"step": "good", "n": 1}])


@pytest.mark.slow
def test_a_few_steps_are_rehearsed(tmp_path):
    words = ["--rehearse", "--workers", "0", "--minutes", "2", "--out", str(tmp_path)]
    assert gpu_evidence.main([*words, "--steps", "environment", "parity"]) == 0
    found = read(tmp_path / "evidence.json")
    assert {name: how["ended"] for name, how in found["steps"].items()} == {"environment": "done", "parity": "done"}
    assert all(row["ok"] for row in found["rows"] if row["step"] == "parity")


def test_without_a_gpu_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit):
        gpu_evidence.main([])
    assert "--rehearse" in capsys.readouterr().err


@pytest.mark.slow
def test_an_abort_costs_one_row(tmp_path):
    rows, ended = taken(tmp_path, step("aborts"), step("good"))
    assert ended == {"aborts": "done", "good": "done"}
    assert [row["n"] for row in rows["aborts"]] == [0, 1, 2]
    assert [row.get("failed") for row in rows["aborts"]] == [None, "ended by SIGABRT", None]
    assert len(rows["good"]) == 3


@pytest.mark.slow
def test_a_lost_gpu_costs_its_child(tmp_path):
    rows, ended = taken(tmp_path, step("loses_the_gpu"))
    assert ended == {"loses_the_gpu": "done"}
    first, lost, last = rows["loses_the_gpu"]
    assert "planted: an illegal address" in lost["failed"]
    assert first["pid"] == lost["pid"] != last["pid"]


@pytest.mark.slow
def test_a_hang_costs_one_row(tmp_path):
    rows, ended = taken(tmp_path, step("hangs", row_seconds=1), step("good"))
    assert ended == {"hangs": "done", "good": "done"}
    assert [row.get("failed") for row in rows["hangs"]] == [None, "no answer in time, killed", None]


@pytest.mark.slow
def test_a_hang_ends_with_its_box(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "GRACE", 0.5)
    rows, ended = taken(tmp_path, step("hangs"), step("good", share=2), seconds=30)
    assert ended == {"hangs": "no answer in time, killed", "good": "done"}
    assert len(rows["hangs"]) == 2


@pytest.mark.slow
def test_a_step_that_only_dies_is_given_up(tmp_path):
    rows, ended = taken(tmp_path, step("always_aborts"), step("good"))
    assert ended == {"always_aborts": "ended by SIGABRT", "good": "done"}
    assert len(rows["always_aborts"]) == children.MOST_DEATHS


@pytest.mark.slow
def test_a_step_stops_where_its_box_ends_and_the_last_are_not_reached(tmp_path):
    rows, ended = taken(tmp_path, step("slow"), step("good"), seconds=16)
    assert ended == {"slow": "out of time", "good": "done"}
    assert rows["slow"]
    _, ended = taken(tmp_path, step("slow"), step("good"), seconds=0.1)
    assert ended == {"slow": "not reached", "good": "not reached"}


@pytest.mark.slow
def test_what_a_child_started_ends_with_it(tmp_path):
    rows, ended = taken(tmp_path, step("starts_another", row_seconds=1))
    assert ended == {"starts_another": "done"}
    assert not _runs(rows["starts_another"][0]["pid"])


@pytest.mark.slow
def test_a_kernel_that_is_wrong_in_one_dtype_is_named(tmp_path):
    rows, _ = taken(tmp_path, step("wrong_in_bfloat16"))
    wrong = {row["numbers"] for row in rows["wrong_in_bfloat16"] if not row["ok"]}
    assert wrong == {"bfloat16"}
    assert {row["numbers"] for row in rows["wrong_in_bfloat16"]} > wrong


@pytest.mark.slow
def test_a_launch_that_does_not_compile_is_named_and_the_next_is_tried(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # the tests' own; children compile
    rows, ended = taken(tmp_path, step("sweep_with_a_bad_candidate"), step("good"))
    assert ended == {"sweep_with_a_bad_candidate": "done", "good": "done"}
    fates = {(row["changed"].get("warps"), "failed" in row) for row in rows["sweep_with_a_bad_candidate"]}
    assert fates == {(None, False), (3, True)}


def _runs(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


COMMAND = """
import sys, time
from pathlib import Path
from benchmarks.gpu_steps.children import Run, Setting
from benchmarks.gpu_steps.result import Result
from benchmarks.gpu_steps.table import Step
out = Path(sys.argv[1])
(out / "log.txt").touch()
steps = [Step(name, "tests.benchmarks.faulty_steps:" + name, 1) for name in sys.argv[2:]]
Run(steps, Setting("cpu", "", time.monotonic() + 60), Result(out / "evidence.json", {}), out / "log.txt").run()
"""


def _command(out: Path, *steps: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    words = [sys.executable, "-c", COMMAND, str(out), *steps]
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_children_end_with_the_command(tmp_path):
    command, file = _command(tmp_path, "tells_its_process"), tmp_path / "evidence.json"
    while not file.exists() or not read(file)["rows"]:
        time.sleep(0.05)
    pid = read(file)["rows"][0]["pid"]
    assert _runs(pid)
    command.kill()
    command.wait()
    until = time.monotonic() + 10
    while _runs(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(pid)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_kill_at_any_moment_leaves_a_readable_result(tmp_path, seed):
    draw = random.Random(seed)
    for turn in range(10):
        out = tmp_path / str(turn)
        out.mkdir()
        command = _command(out, "many")
        file = out / "evidence.json"
        while not file.exists() or (turn % 2 and file.stat().st_size < 100_000):  # every other time in full flow
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        command.send_signal(signal.SIGKILL)
        command.wait()
        found = read(file)
        assert not found["finished"]
        assert [row["n"] for row in found["rows"]] == list(range(len(found["rows"])))
        assert turn % 2 == 0 or found["rows"]


BLOCKING = """
import sys
from pathlib import Path

SOURCES = Path(__file__).parent


class OnlyKnown:
    KNOWN = sys.stdlib_module_names | {"torch", "triton", "numpy", "convpool", "mnistfast", "benchmarks"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.KNOWN:
            return None
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if SOURCES in Path(frame.f_code.co_filename).parents:  # torch itself may import what it likes
            raise ModuleNotFoundError(f"blocked for the test: {name}", name=name)


sys.meta_path.insert(0, OnlyKnown())
"""


@pytest.mark.slow
def test_the_rehearsal_runs_from_the_sources_alone(tmp_path):
    """All steps, without an installation, and with nothing but torch, Triton and NumPy to import."""
    for part in ("kernels", "mnistfast", "benchmarks"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("*.so", "results", "__pycache__"))
    (tmp_path / "sitecustomize.py").write_text(BLOCKING)
    words = ["--rehearse", "--minutes", "3", "--workers", "1", "--out", "found"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}

    def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment | {"PYTHONPATH": f"kernels{os.pathsep}."},
        )

    (tmp_path / "benchmarks" / "probe.py").write_text("import yaml")
    assert "blocked for the test: yaml" in run("benchmarks.probe").stderr
    data = str(tmp_path / "mnistfast" / "data" / "sample")
    process = run("benchmarks.gpu_evidence", *words, "--data", data)
    assert process.returncode == 0, process.stderr
    found = read(tmp_path / "found" / "evidence.json")
    assert found["finished"]
    assert {name: how["ended"] for name, how in found["steps"].items()} == {each.name: "done" for each in STEPS}
    assert next(row["real"] for row in found["rows"] if row.get("what") == "data")
    failed = [row for row in found["rows"] if "failed" in json.dumps(row)]
    assert not failed, (tmp_path / "found" / "log.txt").read_text()
