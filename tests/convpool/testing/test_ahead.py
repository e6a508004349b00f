"""Workers fill the cache that launchers look into, and end with the block (in processes that do not interpret)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[3]

COMPILES = """
import json, multiprocessing, os, torch
from convpool.testing.cases import by_name
from convpool.testing.ahead import Work, compile_work, compiling
from convpool.gpu.offline import TARGETS

def cached():
    return {(folder, *files) for folder, _, files in os.walk(os.environ["TRITON_CACHE_DIR"])}

batch, target = by_name("batch-1"), TARGETS["sm_90"]
refused, failing = Work(batch, torch.int32), Work(batch, torch.float64, plan="fused")
works = [Work(by_name("no-bias")), refused, failing, Work(batch, torch.float16, "channels_last", plan="split")]
with compiling(works, target=target, workers=1) as workers:
    workers[0].join(300)
ahead = cached()
launches = [compile_work(work, target) for work in works if work is not failing]
again = cached() - ahead
with compiling([Work(by_name("vgg-5"))] * 100, target=target, workers=2) as workers:
    assert len(workers) == 2
print(json.dumps({
    "launches": launches,
    "compiled": len(ahead),
    "compiled again": len(again),
    "left": len(multiprocessing.active_children()),
    "ended by": [worker.exitcode for worker in workers],
}))
"""


def run(script: str, tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | variables
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), environment.get("PYTHONPATH", "")])
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_what_is_compiled_ahead_is_not_compiled_again(tmp_path) -> None:
    result = run(COMPILES, tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["launches"] == [4, 0, 4]
    assert found["compiled"] > 6
    assert found["compiled again"] == 0
    assert found["left"] == 0
    assert found["ended by"] == [-signal.SIGKILL] * 2  # nobody waited for what they had not compiled


@pytest.mark.slow
def test_interpreted_kernels_are_not_compiled(tmp_path) -> None:
    script = "from convpool.testing.ahead import compiling\nwith compiling([]): pass"
    result = run(script, tmp_path, TRITON_INTERPRET="1")
    assert (
        result.stderr.splitlines()[-1] == "RuntimeError: TRITON_INTERPRET is set: interpreted kernels are not compiled"
    )
