"""What the Triton kernels take of GPUs that are not here: every launch of a few layers compiled for each, and its
resources.

    python benchmarks/gpu_compile_gate.py [--targets sm_90 ...] [--layers cnn-1 ...] [--numbers tf32 ...] [--out FOLDER]

The real launchers run (`convpool.gpu.offline`), so these are the configurations that ship. Exit status 1, with a line
for each offender, where a kernel spills registers (but for the exceptions below), takes more shared memory than the
architecture allows, or makes no matrix instruction where one is meant. Compilers differ: the table is pinned to one
Triton version, and another version is refused.

`--out` keeps the table: compile_gate.json with a row a launch, and compile_gate.md to read.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_tables import keep

from convpool.cases import by_name
from convpool.gpu import launch
from convpool.gpu.config import architecture_of
from convpool.gpu.offline import TARGETS, Launched, Resources, compiled_launches, resources, uses_matrix_unit
from convpool.protocol import Plan

TRITON = "3.8.0"
EXCEPTIONS: dict[tuple[str, str, str, str], str] = {}  # (layer, numbers, target, kernel): why it may spill; at most 3
LAYERS = {  # one of each kind, in the memory format it is met in
    "cnn-1": "nchw",
    "cnn-2": "channels_last",
    "lenet5-1": "nchw",
    "lenet5-2": "nchw",
    "resnet-stem": "channels_last",
    "vgg-5": "channels_last",
    "depthwise": "nchw",
}
NUMBERS = {
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
}
_FUSED = Plan("triton", "fused", "", "")


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks that reside on one share: threads, bytes of shared memory, 32-bit registers.

    Of the CUDA C++ Programming Guide's table of technical specifications; gfx942 of AMD's CDNA 3 ISA reference.
    """

    threads: int
    shared: int
    registers: int = 64 << 10


MULTIPROCESSORS = {
    "sm_75": Multiprocessor(1024, 64 << 10),
    "sm_80": Multiprocessor(2048, 164 << 10),
    "sm_86": Multiprocessor(1536, 100 << 10),
    "sm_89": Multiprocessor(1536, 100 << 10),
    "sm_90": Multiprocessor(2048, 228 << 10),
    "sm_100": Multiprocessor(2048, 228 << 10),
    "sm_120": Multiprocessor(1536, 100 << 10),
    "gfx942": Multiprocessor(2048, 64 << 10, 128 << 10),
}
_REGISTER_GRAIN = 8  # a thread is given so many at a time
_SHARED_RESERVED = 1 << 10  # of each block's, by CUDA from sm_80 on


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
        "occupancy": round(_occupancy(target, threads, found), 3),
        "matrix": uses_matrix_unit(launched.kernel),
    }


def _occupancy(target: str, threads: int, found: Resources) -> float:
    """Threads that can reside on a multiprocessor at once, of those that it has room for."""
    has = MULTIPROCESSORS[target]
    registers = -(-max(found.registers, 1) // _REGISTER_GRAIN) * _REGISTER_GRAIN
    blocks = min(has.threads // threads, has.registers // (registers * threads))
    if found.shared:
        blocks = min(
            blocks, has.shared // (found.shared + (_SHARED_RESERVED if target not in ("sm_75", "gfx942") else 0))
        )
    return blocks * threads / has.threads


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


def as_markdown(table: list[dict[str, Any]]) -> str:
    """A table for each kind of numbers: kernels down, targets across."""
    lines = [
        "# What the Triton kernels take",
        "",
        f"Compiled by Triton {TRITON} for GPUs that were not there, by `python benchmarks/gpu_compile_gate.py --out "
        "benchmarks/results/gpu`: read from the machine code, nothing was run or timed.",
        "",
        "A cell holds registers a thread / KiB of shared memory a block / occupancy: threads that can reside on a "
        "multiprocessor, of those it has room for. `m`: matrix instructions. `!`: bytes of registers spilled.",
    ]
    for numbers in dict.fromkeys(row["numbers"] for row in table):
        cells = {(row["layer"], row["kernel"], row["target"]): _cell(row) for row in table if row["numbers"] == numbers}
        targets = list(dict.fromkeys(target for _, _, target in cells))
        lines += [
            "",
            f"## {numbers}",
            "",
            f"| layer | kernel | {' | '.join(targets)} |",
            "| --- " * (len(targets) + 2) + "|",
        ]
        for layer, kernel in dict.fromkeys((layer, kernel) for layer, kernel, _ in cells):
            found = (cells.get((layer, kernel, target), "") for target in targets)
            lines.append(f"| {layer} | {kernel} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    spilled = f" !{row['spilled']}" if row["spilled"] else ""
    matrix = " m" if row["matrix"] else ""
    return f"{row['registers']} / {row['shared'] / 1024:.0f} / {row['occupancy']:.0%}{matrix}{spilled}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--numbers", nargs="+", choices=NUMBERS, default=list(NUMBERS))
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if triton.__version__ != TRITON:
        print(f"the table is for Triton {TRITON}, this is {triton.__version__}")
        return 2
    table, wrong = [], 0
    for target in options.targets:
        for layer in options.layers:
            for numbers in options.numbers if target != "sm_75" else set(options.numbers) & {"float32"}:
                for row in rows(layer, target, numbers):
                    table.append(row)
                    for fault in faults(row):
                        wrong += 1
                        print(fault, flush=True)
    if options.out:
        keep(options.out, "compile_gate", table, as_markdown(table))
    print(f"{len(table)} kernels, {wrong} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
