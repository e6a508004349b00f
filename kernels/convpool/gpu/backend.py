"""The backend `triton` as the planner sees it: what it serves, by which plan, and why. Imports no Triton."""

import os
from functools import cache
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
from torch import Tensor

from convpool.geometry import Geometry
from convpool.protocol import ORDINARY, Bound, Needs, Plan, Use

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it once too, when a kernel is defined

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OLDEST = (3, 6)  # the oldest Triton that these kernels are compiled with in CI; 3.5 was not tried

# Measured on an H200 (benchmarks/results/gpu/nvidia-h200, 2026-11-27). An implicit matrix product in Triton reads its
# input tile once for every tap: with 288 products a conv output the fused plan takes 0.54 to 1.1 times the split one's
# time, with 576 1.1 to 3.5 times. More in docs/measurements.md.
_FUSED_PRODUCTS = 300
# What `auto` takes: a call as large as this is faster even where Python launches each of its kernels (1.05 times with
# 196 MiB, 1.2 with 392, waiting for each call). Smaller ones are only where a graph is replayed: called, a forward and
# backward pass costs the CPU there 0.2 to 0.65 ms more than torch's three layers.
_PROFITABLE_BYTES = 192 << 20
_OLDEST_GPU = (7, 5)  # the oldest of the compile gate


class TritonBackend:
    """Serves floating-point tensors on GPUs, and on CPUs where Triton interprets its kernels (slow: for tests)."""

    def unavailable(self) -> str | None:
        if find_spec("triton") is None:
            return "Triton is not installed (it comes with torch for GPUs: pip install triton)"
        if not INTERPRETED and not torch.cuda.is_available():
            return "no GPU that torch can use (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
        import numpy
        import triton

        return _unfit(triton.__version__, numpy.__version__ if INTERPRETED else None) or _unfit_machine()

    def serves(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use = ORDINARY) -> Plan | str:
        if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
            return f"Triton's kernels run on GPUs, got tensors on {device.type!r}"
        if dtype not in DTYPES:
            return f"dtype {dtype} is not one of float32, float16, bfloat16, float64"
        return _plan(geometry, dtype)

    def plans(self, geometry: Geometry, dtype: torch.dtype) -> tuple[str, ...]:
        return ("fused", "split") if _fuses(dtype) else ("split",)

    def kernels(self, x: Tensor, weight: Tensor, geometry: Geometry, plan: str, needs: Needs) -> tuple[str, ...]:
        some = 0 not in geometry.output_shape
        if plan == "split":
            gradients = needs[0] or needs[1]
            return (
                "the vendor's convolution",
                *(("pool",) if some else ()),
                *(("expand",) if some and gradients else ()),
                *(("the vendor's gradients",) if gradients else ()),
                *(("weight_grad", "sum_partials") if needs[2] else ()),
            )
        from convpool.gpu import launch

        forward = launch.forward_kernel(x, weight, geometry)
        return (
            *((forward,) if forward else ()),
            *(("weight_grad", "sum_partials") if needs[1] or needs[2] else ()),
            *(("input_grad",) if needs[0] and 0 not in geometry.x_shape else ()),
        )

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str, with_code: bool
    ) -> tuple[Tensor, Tensor]:
        return _launchers().forward(x, weight, bias, geometry, plan, with_code)

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: str, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _launchers().backward(dy, code, x, weight, geometry, plan, needs)

    def bind(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str) -> Bound:
        return _launchers().bind(x, weight, bias, geometry, plan)


@cache
def _launchers() -> Any:
    """The module `launch`, which imports Triton: at the first launch."""
    from convpool.gpu import launch

    return launch


def _unfit(version: str, interpreted_on: str | None) -> str | None:
    """Why this Triton cannot be used, with NumPy of version `interpreted_on` where kernels are interpreted; or None."""
    found = _release(version)
    if found < OLDEST:
        return f"Triton {version} is too old, the kernels need {OLDEST[0]}.{OLDEST[1]} or newer (pip install -U triton)"
    if found == (3, 6) and interpreted_on and _release(interpreted_on) >= (2, 4):
        return f"the interpreter of Triton 3.6 needs NumPy < 2.4, this is {interpreted_on} (pip install 'numpy<2.4')"
    return None


def _release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as "3.6.0+git1234"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _unfit_machine() -> str | None:
    """Why this machine's GPUs cannot be used, or None."""
    if INTERPRETED:
        return None
    if not (os.environ.get("CC") or which("clang") or which("gcc")):
        return "Triton needs a C compiler to launch kernels (gcc or clang on PATH, or CC)"
    if torch.version.hip is None:
        oldest = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
        if oldest < _OLDEST_GPU:
            return f"a GPU here has compute capability {oldest[0]}.{oldest[1]}, the kernels need 7.5 or newer"
    return None


def _fuses(dtype: torch.dtype) -> bool:
    """Whether the fused plan's kernels compile."""
    return dtype != torch.float64 or INTERPRETED


def _plan(g: Geometry, dtype: torch.dtype) -> Plan:
    """Fused where few products make a conv output, each window position counting.

    It answers from the geometry alone, so that the backward pass and the compiler meet the same plan as the forward
    pass.
    """
    positions = g.conv_height * g.conv_width
    computed = g.window * g.pooled_height * g.pooled_width  # conv outputs, those in several windows counted for each
    conv_bytes = g.batch * g.out_channels * positions * dtype.itemsize
    fused = g.reduction * computed <= _FUSED_PRODUCTS * positions
    if not _fuses(dtype):
        fused = False
        reason = "Triton does not compile the gradients' products in float64, so the vendor makes them"
    elif fused:
        reason = f"with at most {_FUSED_PRODUCTS} products a conv output memory decides, the fused kernels move least"
    else:
        reason = f"more than {_FUSED_PRODUCTS} products a conv output: arithmetic decides, the vendor's is best"
    measured = not INTERPRETED and torch.version.hip is None
    profitable = measured and conv_bytes >= _PROFITABLE_BYTES
    if INTERPRETED:
        reason += "; in Triton's interpreter"
    elif torch.version.hip is not None:
        reason += "; not yet measured on an AMD GPU, so only for those who name it"
    elif not profitable:
        reason += (
            f"; a conv output below {_PROFITABLE_BYTES >> 20} MiB gains on a GPU where a CUDA graph replays the "
            'launches ("auto-replayed"), and costs more where Python makes them: for those who name it'
        )
    return Plan("triton", "fused" if fused else "split", reason, profitable=profitable, profitable_replayed=measured)


BACKEND = TritonBackend()
