"""What the Triton kernels take of GPUs that are not here: every launch of a few layers compiled for each, and its
resources.

    python benchmarks/gpu_compile_gate.py [--targets sm_90 ...] [--layers cnn-1 ...] [--out FILE.json]

The real launchers run (`convpool.gpu.offline`), so these are the configurations that ship. Exit status 1, with a line
for each offender, where a kernel spills registers (but for the exceptions below), takes more shared memory than the
architecture allows, or makes no matrix instruction where one is meant. Compilers differ: the table is pinned to one
Triton version, and another version is refused.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import triton

from convpool.cases import by_name
from convpool.gpu import launch
from convpool.gpu.config import architecture_of
from convpool.gpu.offline import TARGETS, Launched, compiled_launches, machine_code, resources
from convpool.protocol import Plan

TRITON = "3.8.0"
EXCEPTIONS: dict[tuple[str, str, str, str], str] = {}  # (layer, numbers, target, kernel): why it may spill; at most 3
LAYERS = {  # one of each kind, in the memory format it is met in
    "cnn-1": "nchw",
    "cnn-2": "channels_last",
    "lenet5-1": "nchw",
    "lenet5-2": "nchw",
    "resnet-stem": "channels_last",
    "depthwise": "nchw",
}
NUMBERS = {
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
}
_FUSED = Plan("triton", "fused", "", "")
_MATRIX = re.compile(r"HGMMA|HMMA|UTC\wMMA|v_mfma")


def rows(layer: str, target: str, numbers: str) -> list[dict[str, Any]]:
    """The launches of one forward and backward pass and of the split plan's two kernels."""
    dtype, precision = NUMBERS[numbers]
    torch.backends.cudnn.conv.fp32_precision = precision
    case, layout = by_name(layer).at_full_size(), LAYERS[layer]
    fmt = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x, weight = (
        torch.empty(shape, dtype=dtype, device="meta").to(memory_format=fmt)
        for shape in (case.x_shape, case.weight_shape)
    )
    bias = torch.empty(case.out_channels, dtype=dtype, device="meta")
    g = case.geometry
    z = torch.empty((g.batch, g.out_channels, g.conv_height, g.conv_width), dtype=dtype, device="meta").to(
        memory_format=fmt
    )
    with compiled_launches(TARGETS[target]) as launched:
        y, code = launch.forward(x, weight, bias, g, _FUSED, True)
        launch.backward(y, code, x, weight, g, _FUSED, (True, True, True))
        launch.pool(z, bias, g, y, code)
        launch.expand(y, code, g, z)
    return [_row(layer, target, numbers, each) for each in launched]


def _row(layer: str, target: str, numbers: str, launched: Launched) -> dict[str, Any]:
    found = resources(launched.kernel)
    threads = launched.warps * TARGETS[target].warp_size
    return {
        "layer": layer,
        "layout": LAYERS[layer],
        "target": target,
        "numbers": numbers,
        "kernel": launched.name,
        "threads": threads,
        "registers": found.registers,
        "spilled": found.spilled,
        "shared": found.shared,
        "blocks_by_registers": 65536 // (found.registers * threads),  # of a multiprocessor's 64 Ki registers
        "matrix": bool(_MATRIX.search(machine_code(launched.kernel))),
    }


def faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row, in words."""
    at = (row["layer"], row["numbers"], row["target"], row["kernel"])
    target = TARGETS[row["target"]]
    arch = architecture_of(target.backend, target.arch)
    found = []
    if row["spilled"] and at not in EXCEPTIONS:
        found.append(f"{' '.join(at)}: {row['spilled']} bytes of registers spilled")
    if row["shared"] > arch.shared_memory:
        found.append(f"{' '.join(at)}: {row['shared']} bytes of shared memory, the limit is {arch.shared_memory}")
    multiplies = row["kernel"] in ("forward_dot", "weight_grad", "input_grad") and row["layer"] != "depthwise"
    meant = arch.tf32 if row["numbers"] == "tf32" else arch.matrix_unit and row["numbers"] != "float32"
    if multiplies and meant and not row["matrix"]:
        found.append(f"{' '.join(at)}: no matrix instruction")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if triton.__version__ != TRITON:
        print(f"the table is for Triton {TRITON}, this is {triton.__version__}")
        return 2
    table, wrong = [], []
    for target in options.targets:
        for layer in options.layers:
            for numbers in ("float32",) if target == "sm_75" else NUMBERS:
                table += rows(layer, target, numbers)
    for row in table:
        wrong += faults(row)
    if options.out:
        options.out.write_text(json.dumps({"triton": TRITON, "measured": False, "rows": table}, indent=0) + "\n")
    print("\n".join([*wrong, f"{len(table)} kernels, {len(wrong)} faults"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
