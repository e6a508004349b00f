"""`pytest benchmarks/ --benchmark-only` on one workload: what it keeps, and that a wrong kernel leaves nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from convpool import registry

ROOT = Path(__file__).parents[2]
PLANT = """
backend = registry.backend("cpu")
right = backend.backward
def wrong(*arguments):
    dx, dw, db = right(*arguments)
    return dx, dw + 1, db
backend.backward = wrong
"""
RUN = "import sys, pytest\nfrom convpool import registry\n{}\nsys.exit(pytest.main(sys.argv[1:]))"
WORDS = ["benchmarks", "--benchmark-only", "-q", "--seconds", "0.01", "--no-compile", "-p", "no:cacheprovider"]


def run(plant: str, file: Path) -> list[dict]:
    """What the workload left in pytest-benchmark's own file."""
    words = [*WORDS, "-k", "lenet5-2 and training", "--benchmark-json", str(file)]
    process = subprocess.run(
        [sys.executable, "-c", RUN.format(plant), *words], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == (1 if plant else 0), process.stdout
    if plant:
        assert "ParityError: wrong result" in process.stdout
    return json.loads(file.read_text())["benchmarks"] if file.exists() and file.read_text() else []


@pytest.mark.slow
def test_a_result_is_complete(tmp_path):
    (kept,) = run("", tmp_path / "kept.json")
    info, stats = kept["extra_info"], kept["stats"]
    assert kept["group"] == "cpu: layer, training"
    assert stats["rounds"] == info["seconds"]["convpool"]["rounds"] >= 7
    assert stats["median"] == pytest.approx(info["seconds"]["convpool"]["median"], rel=0.1)
    wanted = {"setting", "environment", "threads", "plan", "kept_bytes", "work", "times_faster", "share_of_roofline"}
    assert wanted <= info.keys()


@pytest.mark.slow
def test_a_wrong_kernel_leaves_no_time(tmp_path):
    if registry.backend("cpu").unavailable():
        pytest.skip(f"the kernel to spoil is not there: {registry.backend('cpu').unavailable()}")
    assert run(PLANT, tmp_path / "wrong.json") == []
