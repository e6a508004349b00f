"""The backend `triton` as the planner sees it: what it serves, by which plan, and why. Imports no Triton."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from convpool.geometry import Geometry
from convpool.protocol import Needs, Plan

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it once too, when a kernel is defined

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OLDEST = (3, 6)  # the oldest Triton that these kernels are compiled with in CI; 3.5 was not tried

# An implicit matrix product in Triton reads its input tile once for every tap, so with many products it waits for the
# level-2 cache, and the vendor's convolution wins. The limits are from counting bytes (fused moves 2 to 7 times fewer
# than split) and not yet calibrated on a GPU. A small conv output stays in the cache: there the number of launches
# decides (fused 1 + 3).
_FUSED_PRODUCTS = 250
_FUSED_BYTES = 8 << 20


class TritonBackend:
    """Serves floating-point tensors on GPUs, and on CPUs where Triton interprets its kernels (slow: for tests)."""

    name = "triton"

    def unavailable(self) -> str | None:
        if find_spec("triton") is None:
            return "Triton is not installed (it comes with torch for GPUs: pip install triton)"
        if not INTERPRETED and not torch.cuda.is_available():
            return "no GPU that torch can use (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
        import numpy
        import triton

        return _unfit(triton.__version__, numpy.__version__ if INTERPRETED else None)

    def serves(self, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Plan | str:
        if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
            return f"Triton's kernels run on GPUs, got tensors on {device.type!r}"
        if dtype not in DTYPES:
            return f"dtype {dtype} is not one of float32, float16, bfloat16, float64"
        return _plan(geometry, dtype)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: Plan, with_code: bool
    ) -> tuple[Tensor, Tensor]:
        from convpool.gpu import launch

        return launch.forward(x, weight, bias, geometry, plan, with_code)

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: Plan, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        from convpool.gpu import launch

        return launch.backward(dy, code, x, weight, geometry, plan, needs)


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


def _plan(g: Geometry, dtype: torch.dtype) -> Plan:
    """Fused where few products make a conv output, each window position counting, or where the conv output is small.

    A GPU's users gain by measured tuning here: whatever replaces this rule must answer from the geometry alone, so
    that the backward pass and the compiler meet the same plan as the forward pass.
    """
    positions = g.conv_height * g.conv_width
    computed = g.window * g.pooled_height * g.pooled_width  # conv outputs, those in several windows counted for each
    conv_bytes = g.batch * g.out_channels * positions * dtype.itemsize
    fused = True
    if dtype == torch.float64 and not INTERPRETED:
        fused = False
        reason = "Triton does not compile the gradients' products in float64, so the vendor makes them"
    elif g.reduction * computed <= _FUSED_PRODUCTS * positions:
        reason = f"with at most {_FUSED_PRODUCTS} products a conv output memory decides, the fused kernels move least"
    elif conv_bytes <= _FUSED_BYTES:
        reason = f"the conv output is at most {_FUSED_BYTES >> 20} MiB, so the number of launches decides"
    else:
        fused = False
        reason = f"more than {_FUSED_PRODUCTS} products a conv output: arithmetic decides, the vendor's is best"
    reason += (
        "; in Triton's interpreter" if INTERPRETED else "; not yet measured on a GPU, so only for those who name it"
    )
    if fused:
        return Plan("triton", "fused", "Triton kernels", reason, profitable=False)
    return Plan("triton", "split", "the vendor's convolution and Triton's pooling pass", reason, profitable=False)


BACKEND = TritonBackend()
