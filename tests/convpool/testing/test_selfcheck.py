"""What the self-check reports, in which order and when, whatever a backend does, and with which exit status."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from convpool import registry
from convpool.protocol import Plan
from convpool.testing import candidates, cases, parity, selfcheck, timing
from convpool.testing.isolated import CONTEXT, Failure
from convpool.testing.selfcheck import Check, Result

CPU = torch.device("cpu")


class InPlace:
    """Stands for `Isolated`: calls where the test's patches are."""

    def __enter__(self) -> "InPlace":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, function: Callable[..., object], *arguments: object, seconds: float) -> object:
        try:
            return function(*arguments)
        except Exception as error:
            return Failure("raised", str(error))


@pytest.fixture
def in_place(monkeypatch) -> None:
    monkeypatch.setattr(selfcheck, "Isolated", InPlace)


@pytest.fixture
def as_on_a_gpu(monkeypatch, in_place) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(selfcheck, "setting", lambda _: "as on a GPU")
    monkeypatch.setattr(selfcheck.registry, "backend_names", lambda: ["triton"])
    monkeypatch.setattr(selfcheck, "speeds", lambda case, _: {"eager": 1e-6})
    monkeypatch.setattr(type(registry.backend("triton")), "unavailable", lambda _: None)


def right(check: Check, device: torch.device) -> Result:
    return Result("ok")


def planted(check: Check, device: torch.device) -> Result:
    """Bugs of every kind in one backend, each in a case of its own."""
    if check.backend == "reference" and check.layout == "nchw":
        if check.case == "batch-17":
            return Result("WRONG", "random: y 3")
        if check.case == "cnn-1":
            raise ValueError("of a\nplanted kind")
        if check.case == "cnn-2":
            os.abort()
        if check.case == "lenet5-1":
            time.sleep(60)
    return Result("ok")


def verdicts(file: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in json.loads(file.read_text())["results"]:
        found.setdefault(row["case"], set()).add(row["verdict"])
    return found


def test_reports_every_backend(tmp_path, capsys) -> None:
    file = tmp_path / "report.json"
    assert selfcheck.main(["--cases", "batch-1", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    found = {result["backend"]: result["verdict"] for result in report["results"]}
    present = [name for name in registry.backend_names() if not registry.backend(name).unavailable()]
    assert list(found) == present
    assert set(found.values()) <= {"ok", "not served"}
    assert found["reference"] == "ok"
    assert report["finished"]
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "exit status 0: all that was checked is right"
    if not torch.cuda.is_available():
        assert report["seconds"] == "not measured"
        assert "no GPU" in out


@pytest.mark.slow
def test_whatever_a_backend_does_the_rest_is_checked(tmp_path, capsys) -> None:
    file, names = tmp_path / "report.json", ["batch-17", "cnn-1", "cnn-2", "lenet5-1", "fast-1"]
    assert selfcheck.main(["--cases", *names, "--json", str(file)], planted, patience=5.0) == 1
    rows = json.loads(file.read_text())["results"]
    bad = {row["case"]: (row["verdict"], row["detail"]) for row in rows if row["verdict"] != "ok"}
    assert bad == {
        "batch-17": ("WRONG", "random: y 3"),
        "cnn-1": ("raised", "ValueError: of a"),
        "cnn-2": ("crashed", "ended by SIGABRT"),
        "lenet5-1": ("hung", "no answer within 5 s"),
    }
    assert len(rows) - len(bad) > 2 * len(names)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("exit status 1: cnn-1 float32 nchw reference raised; cnn-2 float32 nchw reference crashed; ")


def check_for_ever(file: str) -> None:
    selfcheck.main(["--cases", "lenet5-1", "batch-17", "--json", file], planted)


@pytest.mark.slow
def test_a_killed_run_leaves_its_report(tmp_path) -> None:
    file = tmp_path / "report.json"
    run = CONTEXT.Process(target=check_for_ever, args=(str(file),))
    run.start()
    until = time.monotonic() + 60
    while time.monotonic() < until and not (file.exists() and "ok" in verdicts(file).get("lenet5-1", ())):
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.join(60)
    assert verdicts(file) == {"lenet5-1": {"ok", "not reached"}, "batch-17": {"not reached"}}
    assert not json.loads(file.read_text())["finished"]


def test_order_of_value() -> None:
    backends = ["triton", "reference"]
    found = selfcheck.planned(cases.CASES, backends, gpu=True, named=False)
    order = list(dict.fromkeys((check.dtype, check.case) for check in found))
    small, kinds = [case.name for case in cases.SMALL_NETWORKS], set(selfcheck._KINDS)
    float32 = [case for dtype, case in order if dtype == "float32"]
    assert float32[: len(small)] == small
    assert set(float32[len(small) : len(small) + len(kinds)]) == kinds
    assert sorted(float32) == sorted(case.name for case in cases.CASES)
    assert {dtype for dtype, _ in order[len(cases.CASES) :]} == {"bfloat16", "float16", "float64"}
    assert len(set(found)) == len(found)
    assert [(check.backend, check.full) for check in found[:6:2]] == [
        ("triton", False),
        ("triton", True),
        ("reference", False),
    ]
    without = selfcheck.planned(cases.CASES, backends, gpu=False, named=False)
    assert not any(check.full or check.dtype != "float32" for check in without)
    assert {check.case for check in without if check.backend == "triton"} == set(selfcheck._INTERPRETED)


def test_time_runs_out(monkeypatch, in_place, tmp_path, capsys) -> None:
    """A clock that advances by a minute whenever it is read; what hangs when time runs out was not reached."""
    minutes: Iterator[int] = iter(range(1000))

    def clock() -> float:
        return 60.0 * next(minutes)

    monkeypatch.setattr(selfcheck.registry, "backend_names", lambda: ["reference"])
    file = tmp_path / "report.json"
    assert selfcheck.main(["--minutes", "6", "--json", str(file)], right, clock=clock) == 0
    rows = json.loads(file.read_text())["results"]
    assert [row["verdict"] for row in rows] == ["ok"] * 4 + ["not reached"] * (len(rows) - 4)
    assert {row["case"] for row in rows} == {case.name for case in cases.CASES}
    assert f"{len(rows) - 4} not reached" in capsys.readouterr().out

    minutes = iter(range(1000))
    monkeypatch.setattr(InPlace, "call", lambda *_, seconds: Failure("hung", f"{seconds}"))
    assert selfcheck.main(["--minutes", "3", "--cases", "batch-1", "--json", str(file)], right, clock=clock) == 1
    assert verdicts(file) == {"batch-1": {"not reached"}}
    assert "nothing was checked" in capsys.readouterr().out


def test_a_wrong_kernel_fails(monkeypatch, in_place, tmp_path) -> None:
    """A backend that forgets the last image of a case."""
    reference = registry.backend("reference")
    forward = type(reference).forward

    def forgetful(self, x, *rest):
        y, code = forward(self, x, *rest)
        if len(x) == 17:
            y[-1] = 0
        return y, code

    monkeypatch.setattr(type(reference), "forward", forgetful)
    monkeypatch.setattr(selfcheck.registry, "backend_names", lambda: ["reference"])
    file = tmp_path / "report.json"
    assert selfcheck.main(["--cases", "batch-1", "batch-17", "--json", str(file)]) == 1
    assert verdicts(file) == {"batch-1": {"ok"}, "batch-17": {"WRONG"}}


@pytest.mark.parametrize(
    ("plan", "device", "dtype", "exact"),
    [
        ("fused", "cuda", "float32", True),
        ("split", "cuda", "float32", False),
        ("reference", "cuda", "float32", False),
        ("reference", "cpu", "float32", True),
        ("fused", "cuda", "float64", True),
        ("fused", "cuda", "bfloat16", False),
    ],
)
def test_only_our_own_sums_must_be_exact_on_a_gpu(plan, device, dtype, exact, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(selfcheck, "pin_precision", lambda _: None)
    monkeypatch.setattr(selfcheck.parity, "make_inputs", lambda *_, integers, **__: integers)
    monkeypatch.setattr(
        selfcheck.parity, "check", lambda inputs, _, exact: asked.append((inputs, exact)) or parity.Parity()
    )
    monkeypatch.setattr(type(registry.backend("reference")), "serves", lambda *_: Plan("reference", plan, ""))
    check = Check("batch-1", False, dtype, "nchw", "reference")
    assert selfcheck.check_case(check, torch.device(device)).verdict == "ok"
    assert asked == [(True, exact), (False, False)]


def test_what_is_not_right_is_not_timed(as_on_a_gpu, tmp_path) -> None:
    """And workers that cannot compile ahead (this process interprets) are no obstacle."""
    file = tmp_path / "report.json"

    def wrong_at_full_size(check: Check, _: torch.device) -> Result:
        return Result("WRONG" if check.case == "cnn-1" and check.full else "ok")

    assert selfcheck.main(["--cases", "cnn-1", "cnn-2", "batch-1", "--json", str(file)], wrong_at_full_size) == 1
    assert json.loads(file.read_text())["seconds"] == {"cnn-2": {"eager": 1e-6}}


def test_a_timing_that_fails_is_told(as_on_a_gpu, monkeypatch, tmp_path, capsys) -> None:
    def broken(case: cases.Case, _: torch.device) -> str:
        if case.name == "cnn-1":
            raise RuntimeError("no graph")
        return "not timed: torch's own is not exact"

    monkeypatch.setattr(selfcheck, "speeds", broken)
    file = tmp_path / "report.json"
    assert selfcheck.main(["--cases", "cnn-2", "--json", str(file)], right) == 0
    assert selfcheck.main(["--cases", "cnn-1", "cnn-2", "--json", str(file)], right) == 1
    assert json.loads(file.read_text())["seconds"] == {
        "cnn-1": {"kind": "raised", "detail": "no graph"},
        "cnn-2": "not timed: torch's own is not exact",
    }
    assert capsys.readouterr().out.splitlines()[-1] == "exit status 1: cnn-1 raised when timed"


def test_workers_compile_what_is_checked_and_end_with_the_run(as_on_a_gpu, monkeypatch) -> None:
    ahead = pytest.importorskip("convpool.testing.ahead")
    seen = []

    @contextlib.contextmanager
    def compiling(works):
        seen.extend(works)
        yield
        seen.append("ended")

    monkeypatch.setattr(ahead, "compiling", compiling)
    assert selfcheck.main(["--cases", "batch-1", "cnn-1"], right) == 0
    cnn, batch = cases.by_name("cnn-1"), cases.by_name("batch-1")
    assert [(work.case, work.layout) for work in seen[:6]] == [
        (case, layout) for case in (cnn, cnn.at_full_size(), batch) for layout in ("nchw", "channels_last")
    ]
    assert seen[-1] == "ended"


def test_speeds_are_those_of_torch_and_of_the_kernels(monkeypatch) -> None:
    asked = []

    def compare_layer(inputs, backends):
        asked.append((tuple(inputs.x.shape), backends))
        return {"eager": timing.Timing(2e-6, 1e-6, 3e-6, 7)}

    monkeypatch.setattr(selfcheck, "compare_layer", compare_layer)
    assert selfcheck.speeds(cases.by_name("fast-1"), CPU) == {"eager": 2e-6}
    assert asked == [((256, 1, 28, 28), ("triton",))]

    def inexact(*_):
        raise candidates.ParityError("wrong result on integers")

    monkeypatch.setattr(selfcheck, "compare_layer", inexact)
    assert selfcheck.speeds(cases.by_name("fast-1"), CPU) == "not timed: wrong result on integers"
