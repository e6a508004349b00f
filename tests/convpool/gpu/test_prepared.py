"""Launches that were worked out once, seen where Triton compiles for a GPU that is not here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = [pytest.mark.slow, pytest.mark.triton]
ROOT = Path(__file__).parents[3]


def run(tmp_path: Path, *command: str | Path) -> str:
    """What a program of a process that does not interpret prints."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    folders = [str(ROOT / "kernels"), str(ROOT / "benchmarks"), str(ROOT), environment.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(folders), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_driver_is_handed_what_triton_hands_it(tmp_path) -> None:
    """Pointers, constants, stream and kernel; and hooks, tools and other Tritons get Triton's own launch."""
    assert run(tmp_path, Path(__file__).with_name("prepared_launches.py")) == "all as Triton launches\n"


def test_what_a_call_costs_in_python(tmp_path) -> None:
    """The times are this machine's; that each is of a call with its launches is looked at."""
    run(tmp_path, ROOT / "benchmarks/launch_cost.py", "--seconds", "0.01", "--out", str(tmp_path))
    table = json.loads((tmp_path / "launch_cost.json").read_text())["rows"]
    assert [row["op, forward: launches"] for row in table] == [1, 1]
    assert [row["op, both: launches"] for row in table] == [4, 3]
    assert all(row["op, both"] > row["op, forward"] > 0 for row in table)
