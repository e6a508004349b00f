"""`pytest benchmarks/ --benchmark-only` on one workload: what its rows are, and that a wrong kernel leaves none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from convpool import registry
from convpool.testing.candidates import PLAIN
from mnistfast.measure.forms import FUSED, FUSED_LAST

ROOT = Path(__file__).parents[2]
WRONG = """
backend = registry.backend("cpu")
right = backend.backward
def wrong(*arguments):
    dx, dw, db = right(*arguments)
    return dx, dw + 1, db
backend.backward = wrong
"""
NOT_COMPILED = "candidates.compiled = lambda layer, mode: layer"
NO_COMPILER = """
def compiled(layer, mode):
    raise RuntimeError("no C++ compiler")
candidates.compiled = compiled
"""
ONE_RACE = """
from mnistfast.measure import suite
prepare = suite.prepare
def once(*arguments):
    suite.prepare = None
    return prepare(*arguments)
suite.prepare = once
"""
RUN = """
import sys, pytest, torch
from convpool import registry
from convpool.testing import candidates
torch.set_num_threads(1)
{}
sys.exit(pytest.main(sys.argv[1:]))
"""
WORDS = ["benchmarks", "--benchmark-only", "-q", "-rs", "--seconds", "0.01", "-p", "no:cacheprovider"]
WORDS += ["-k", "cpu and lenet5-2 and training", "--benchmark-json"]


def run(plant: str, file: Path, *words: str, code: int = 0) -> tuple[str, list[dict]]:
    """What pytest said of the workload, and what that left in pytest-benchmark's own file."""
    process = subprocess.run(
        [sys.executable, "-c", RUN.format(plant), *WORDS, str(file), *words], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == code, process.stdout
    return process.stdout, json.loads(file.read_text())["benchmarks"] if file.exists() and file.read_text() else []


@pytest.mark.slow
def test_each_form_has_a_row_of_the_one_race(tmp_path):
    _, kept = run(ONE_RACE, tmp_path / "kept.json", "--no-compile")
    assert [row["extra_info"]["form"] for row in kept] == [FUSED, FUSED_LAST, *PLAIN]
    assert {row["group"] for row in kept} == {"cpu: layer, training: lenet5-2"}
    for row in kept:
        info, stats = row["extra_info"], row["stats"]
        assert info | {"form": None} == kept[0]["extra_info"] | {"form": None}
        assert row["name"].endswith(f": {info['form']}]")
        mine = info["seconds"][info["form"]]
        assert stats["rounds"] == mine["rounds"] >= 7
        assert stats["median"] == pytest.approx(mine["median"])
        assert stats["min"] <= mine["low"] <= mine["high"] <= stats["max"]
    wanted = {"setting", "environment", "threads", "plan", "kept_bytes", "work", "times_faster", "share_of_roofline"}
    assert wanted <= kept[0]["extra_info"].keys()


@pytest.mark.slow
def test_what_is_compiled_has_a_row(tmp_path):
    _, kept = run(NOT_COMPILED, tmp_path / "kept.json")
    assert len(kept) == 6
    assert kept[-1]["name"].endswith(": torch.compile]")
    assert kept[-1]["extra_info"]["form"].removeprefix("torch.compile of ") in PLAIN


@pytest.mark.slow
def test_what_took_no_part_says_why(tmp_path):
    said, kept = run(NO_COMPILER, tmp_path / "kept.json")
    assert len(kept) == 5
    assert "RuntimeError: no C++ compiler" in said


@pytest.mark.slow
def test_a_wrong_kernel_leaves_no_time(tmp_path):
    if registry.backend("cpu").unavailable():
        pytest.skip(f"the kernel to spoil is not there: {registry.backend('cpu').unavailable()}")
    said, kept = run(WRONG, tmp_path / "wrong.json", "--no-compile", code=1)
    assert "ParityError: wrong result" in said
    assert kept == []
