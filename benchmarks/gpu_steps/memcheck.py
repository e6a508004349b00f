"""Whether our kernels stay within their tensors, where Compute Sanitizer is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import partial
from typing import Any

from benchmarks.gpu_steps.examined import command
from benchmarks.gpu_steps.subjects import Bench, Rows

TOOLS = ("memcheck", "initcheck", "racecheck")


def rows(bench: Bench) -> Rows:
    for tool in TOOLS[:1] if bench.rehearses else TOOLS:
        yield {"tool": tool}, partial(_examine, bench, tool)


def _examine(bench: Bench, tool: str) -> dict[str, Any]:
    if not bench.rehearses and not shutil.which("compute-sanitizer"):
        return {"missing": "not installed"}
    checker = [] if bench.rehearses else ["compute-sanitizer", "--tool", tool, "--error-exitcode", "7"]
    # torch's own allocator hands out parts of one allocation, whose ends memcheck cannot see.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    examined = command(bench, 128, "tf32")
    found = subprocess.run([*checker, *examined], capture_output=True, text=True, env=environment)
    return {"ok": found.returncode == 0, "status": found.returncode, "tail": (found.stdout + found.stderr)[-600:]}
