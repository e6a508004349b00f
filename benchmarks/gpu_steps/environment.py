"""What the figures hold for: versions, device, clocks, what the hardware gives at best, and what a launch costs."""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_steps.subjects import Bench, Rows

TOOLS = ("nvcc", "ptxas", "ncu", "compute-sanitizer", "gcc")
_SMI = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,temperature.gpu"


def rows(bench: Bench) -> Rows:
    yield {"what": "versions"}, _versions
    yield {"what": "device"}, lambda: _device(bench)
    yield {"what": "defaults"}, _defaults
    yield {"what": "peaks"}, lambda: _peaks(bench)
    yield {"what": "launches"}, lambda: _launches(bench)
    yield {"what": "clocks"}, lambda: {"smi": _smi()}  # after the load above


def _versions() -> dict[str, Any]:
    import triton

    return {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tools": [tool for tool in TOOLS if shutil.which(tool)],
    }


def _device(bench: Bench) -> dict[str, Any]:
    if bench.rehearses:
        return {"device": platform.machine()}
    has = torch.cuda.get_device_properties(0)
    return {
        "device": has.name,
        "capability": list(torch.cuda.get_device_capability()),
        "multiprocessors": has.multi_processor_count,
        "l2_bytes": has.L2_cache_size,
        "bytes": has.total_memory,
        "smi": _smi(),
    }


def _smi() -> dict[str, str]:
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader", "-i", "0"]
    values = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip().split(", ")
    return dict(zip(_SMI.split(","), values, strict=False))


def _defaults() -> dict[str, Any]:
    """How torch rounds unless it is told otherwise."""
    return {
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _peaks(bench: Bench) -> dict[str, Any]:
    """Copy bandwidth beyond the cache, and the rate of a large bfloat16 product."""
    size, bytes_ = (64, 1 << 16) if bench.rehearses else (8192, 1 << 30)
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    source, target = (torch.empty(bytes_, dtype=torch.uint8, device=bench.device) for _ in range(2))
    product = bench.race({"product": lambda: a @ b}, times=3)["product"]["us"]
    copy = bench.race({"copy": lambda: target.copy_(source)}, times=3)["copy"]["us"]
    return {"bf16_tflops": round(2 * size**3 / product / 1e6, 1), "copy_tb_s": round(2 * bytes_ / copy / 1e6, 3)}


def _launches(bench: Bench) -> dict[str, Any]:
    """The least kernel as a node of a graph, and as a call."""
    tiny = torch.zeros(32, device=bench.device)
    call = {"us": lambda: tiny.add_(1)}
    return {"graph_node": bench.race(call, times=500)["us"], "eager_call": bench.race(call, replay=False)["us"]}
