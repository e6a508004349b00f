"""Shipped configurations compile for GPUs that are not here, and fit them (in a process that does not interpret)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]
TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")

pinned = pytest.mark.skipif(triton.__version__ != "3.8.0", reason="the table of resources is for Triton 3.8.0")


def gate(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_compile_gate.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)


@pinned
@pytest.mark.exhaustive
@pytest.mark.parametrize("target", TARGETS)
def test_fits(target: str) -> None:
    result = gate("--targets", target, "--layers", "cnn-1", "cnn-2")
    assert result.returncode == 0, result.stdout + result.stderr
