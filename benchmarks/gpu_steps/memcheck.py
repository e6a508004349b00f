"""Whether our kernels stay within their tensors, where Compute Sanitizer is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from typing import Any

from benchmarks.gpu_steps.subjects import Bench, Rows

TOOLS = ("memcheck", "initcheck", "racecheck")


def rows(bench: Bench) -> Rows:
    for tool in TOOLS[:1] if bench.rehearses else TOOLS:
        yield {"tool": tool}, partial(_examine, bench, tool)


def _examine(bench: Bench, tool: str) -> dict[str, Any]:
    if not bench.rehearses and not shutil.which("compute-sanitizer"):
        return {"missing": "not installed"}
    command = [] if bench.rehearses else ["compute-sanitizer", "--tool", tool, "--error-exitcode", "7"]
    command += [sys.executable, "-m", "benchmarks.gpu_steps.examined", bench.device]
    # torch's own allocator hands out parts of one allocation, whose ends memcheck cannot see.
    found = subprocess.run(command, capture_output=True, text=True, env=_without_caching())
    return {"ok": found.returncode == 0, "status": found.returncode, "tail": (found.stdout + found.stderr)[-600:]}


def _without_caching() -> dict[str, str]:
    import os

    return os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
