"""On a GPU each operation is one launch, of a kernel that is compiled once; and it compiles for GPUs, and fits them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = [pytest.mark.triton, pytest.mark.slow]
ROOT = Path(__file__).parents[3]

# Launches, and kernels that had to be compiled for them. None for another number of rows, which a training's last batch
# and its processes have; by torch where a kernel does not reach.
LAUNCHED = {
    "a batch": [1, 1],
    "the last batch": [1, 0],
    "a process' rows": [1, 0],
    "no rows": [1, 0],
    "a loss": [1, 1],
    "the last loss": [1, 0],
    "a process' loss": [1, 0],
    "no rows' loss": [1, 0],
    "a loss of very many classes": [0, 0],
    "a kernel": [1, 1],
    "the same kernel": [1, 0],
    "a kernel in channels_last": [1, 0],
    "a kernel in two formats": [0, 0],
    "a kernel of many rows": [0, 0],
    "a kernel of long rows": [0, 0],
}


def run(script: Path, *arguments: str, **more: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    path = os.pathsep.join(map(str, (ROOT / "kernels", ROOT, ROOT / "benchmarks")))
    environment |= {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""} | more
    done = subprocess.run([sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def launched() -> dict[str, list[int]]:
    return json.loads(run(Path(__file__).with_name("launches_on_meta.py")).splitlines()[-1])


@pytest.mark.parametrize("call", LAUNCHED)
def test_one_launch_of_a_kernel_that_was_compiled_before(call, launched) -> None:
    assert launched[call] == LAUNCHED[call]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_they_compile_and_fit(target, tmp_path) -> None:
    options = "--targets", target, "--layers", "step", "--out", str(tmp_path)
    run(ROOT / "benchmarks/gpu_compile_gate.py", *options, TRITON_CACHE_DIR=str(tmp_path / "cache"))
    rows = json.loads((tmp_path / "compile_gate.json").read_text())["rows"]
    assert {row["kernel"].split()[0].strip(",") for row in rows} == {"batch", "loss", "muon"}
    assert all(row["shared"] <= 48 << 10 and row["registers"] <= 128 for row in rows)
