"""What the Triton kernels take of GPUs that are not here: what the backend promises a few layers, compiled for each.

    python benchmarks/gpu_compile_gate.py [--targets sm_90 ...] [--layers cnn-1 ...] [--numbers tf32 ...] [--out FOLDER]

The real launchers run (`convpool.gpu.offline`) the plan that the backend's `serves()` names, so these are the
configurations that ship: each layer in each kind of numbers, in the memory format that it is met in, and for sm_90 in
both; and, in the place of a layer, `step`: the small operations of a training step (`gpu_step_operations.py`). Exit
status 1, with a line for each offender, where a kernel does not compile, takes more shared memory than the architecture
allows, makes no matrix instruction where one is meant, or, with the Triton that the table is pinned to, spills
registers (but for the exceptions below; other versions spill here and there, and say so).

`--out` keeps the table: compile_gate.json with a row a launch, and compile_gate.md to read.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_machine_code import counts
from gpu_multiprocessors import MULTIPROCESSORS, resident
from gpu_step_operations import launches as launches_of_step
from gpu_tables import keep, markdown

from convpool.gpu import launch
from convpool.gpu.backend import BACKEND
from convpool.gpu.config import architecture_of
from convpool.gpu.offline import TARGETS, Launched, compiled_launches, resources, uses_matrix_unit
from convpool.protocol import Plan
from convpool.testing.cases import Case, by_name

TRITON = "3.8.0"  # whose registers and spills the kept table shows
EXCEPTIONS: dict[tuple[str, str, str, str], str] = {  # (layer, numbers, target, kernel): why it may spill; at most 3
    (
        "cnn-2",
        "bfloat16",
        "sm_90",
        "weight_grad",
    ): "8 bytes in NCHW; the block of 64 columns takes 0.6 of an H200's time",
}
LEAST_INSTRUCTIONS = 50  # Triton 3.8 has compiled a loop with loads ahead to 16 for sm_100, without a word
LAYERS = {  # one of each kind, in the memory format it is met in
    "cnn-1": "nchw",
    "cnn-2": "channels_last",
    "lenet5-1": "nchw",
    "lenet5-2": "nchw",
    "resnet-stem": "channels_last",
    "vgg-1": "channels_last",
    "vgg-5": "channels_last",
    "depthwise": "nchw",
}
STEP = "step"  # in the place of a layer
BATCHES = (128, 1024)  # in which the grids are counted
LAYOUTS = ("nchw", "channels_last")
BOTH_LAYOUTS = "sm_90"  # where each layer is compiled in the other format too
NUMBERS = {
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
    "float64": (torch.float64, "ieee"),
}


@dataclass(frozen=True)
class Promise:
    """A layer that the backend says it serves, by the plan that it names."""

    layer: str
    layout: str
    numbers: str
    target: str
    plan: Plan


def promises(targets: Iterable[str], layers: Iterable[str], numbers: Iterable[str]) -> list[Promise]:
    """What `serves()` answers for each layer, kind of numbers and target, in the formats that the table has."""
    found = []
    for target, layer, kind in product(targets, layers, numbers):
        if kind == "tf32" and not architecture_of(TARGETS[target].backend, TARGETS[target].arch).tf32:
            continue  # computed as float32 there
        plan = BACKEND.serves(case_of(layer).geometry, NUMBERS[kind][0], torch.device("cuda"))
        if isinstance(plan, Plan):
            layouts = LAYOUTS if target == BOTH_LAYOUTS else (LAYERS[layer],)
            found += [Promise(layer, layout, kind, target, plan) for layout in layouts]
    return found


def case_of(layer: str, batch: int | None = None) -> Case:
    """The layer at the size at which people use it; in another batch if one is given."""
    case = by_name(layer).at_full_size()
    return replace(case, batch=batch or case.batch)


def launches(case: Case, numbers: str, layout: str, plan: str, target: str) -> list[Launched]:
    """Those of one forward and backward pass with all gradients."""
    dtype, precision = NUMBERS[numbers]
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x, weight = (
        torch.empty(shape, dtype=dtype, device="meta").to(memory_format=form)
        for shape in (case.x_shape, case.weight_shape)
    )
    bias = torch.empty(case.out_channels, dtype=dtype, device="meta") if case.bias else None
    with compiled_launches(TARGETS[target]) as launched:
        y, code = launch.forward(x, weight, bias, case.geometry, plan, True)
        launch.backward(y, code, x, weight, case.geometry, plan, (True, True, bias is not None))
    return launched


def rows(promise: Promise) -> list[dict[str, Any]]:
    """What each launch takes, and how many programs a multiprocessor gets in small and large batches."""
    about = promise.numbers, promise.layout, promise.plan.plan, promise.target
    found = [
        _row(promise.layer, promise.layout, promise.target, promise.numbers, _name(each), each)
        for each in launches(case_of(promise.layer), *about)
    ]
    for batch in BATCHES:
        _count_programs(found, batch, launches(case_of(promise.layer, batch), *about))
    return found


def rows_of_step(target: str) -> list[dict[str, Any]]:
    """The same of the operations of a step."""
    found = [_row(STEP, "", target, "float32", name, each) for name, each in launches_of_step(target, BATCHES[0])]
    for batch in BATCHES:
        _count_programs(found, batch, [each for _, each in launches_of_step(target, batch)])
    return found


def _name(launched: Launched) -> str:
    return launched.name if launched.arguments.get("NEEDS_WEIGHT", True) else "weight_grad, db alone"


def _row(layer: str, layout: str, target: str, numbers: str, kernel: str, launched: Launched) -> dict[str, Any]:
    found, counted = resources(launched.kernel), counts(launched.kernel)
    threads = launched.warps * TARGETS[target].warp_size
    return {
        "layer": layer,
        "layout": layout,
        "target": target,
        "numbers": numbers,
        "kernel": kernel,
        "threads": threads,
        "stages": launched.kernel.metadata.num_stages,
        "registers": found.registers,
        "spilled": found.spilled,
        "shared": found.shared,
        "occupancy": round(resident(target, launched.warps, found) * threads / MULTIPROCESSORS[target].threads, 3),
        "matrix": uses_matrix_unit(launched.kernel),
        **asdict(counted),
    }


def _count_programs(found: list[dict[str, Any]], batch: int, launched: list[Launched]) -> None:
    for row, each in zip(found, launched, strict=True):
        target = TARGETS[row["target"]]
        multiprocessors = architecture_of(target.backend, target.arch).multiprocessors
        row[f"programs_{batch}"] = round(each.programs / multiprocessors, 2)


def faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row, in words."""
    at = (row["layer"], row["numbers"], row["target"], row["kernel"])
    target = TARGETS[row["target"]]
    arch = architecture_of(target.backend, target.arch)
    found = []
    if row["spilled"] and at not in EXCEPTIONS and triton.__version__ == TRITON:
        found.append(f"{' '.join(at)}: {row['spilled']} bytes of registers spilled")
    if row["shared"] > arch.shared_memory:
        found.append(f"{' '.join(at)}: {row['shared']} bytes of shared memory, the limit is {arch.shared_memory}")
    if row["instructions"] < LEAST_INSTRUCTIONS:
        found.append(f"{' '.join(at)}: {row['instructions']} instructions, the compiler has dropped what it does")
    multiplies = (
        row["kernel"] in ("forward_patch", "forward_dot", "weight_grad", "input_grad") and row["layer"] != "depthwise"
    )
    meant = arch.tf32 if row["numbers"] == "tf32" else arch.matrix_unit and row["numbers"] in ("float16", "bfloat16")
    if multiplies and meant and not row["matrix"]:
        found.append(f"{' '.join(at)}: no matrix instruction")
    return found


def as_markdown(table: list[dict[str, Any]]) -> str:
    """A table for each kind of numbers: kernels down, targets across; then how kernels fill a machine."""
    lines = [
        "# What the Triton kernels take",
        "",
        f"Compiled by Triton {triton.__version__} for GPUs that were not there, by "
        "`python benchmarks/gpu_compile_gate.py --out benchmarks/results/gpu`: read from the machine code, nothing was "
        "run or timed.",
        "",
        "A cell holds registers a thread / KiB of shared memory a block / occupancy: threads that can reside on a "
        "multiprocessor, of those it has room for. `m`: matrix instructions. `!`: bytes of registers spilled. The last "
        f"section, for {BOTH_LAYOUTS}, has instructions, barriers and stores to shared memory as they lie in the code, "
        "and programs for each multiprocessor in batches of 128 and 1024.",
    ]
    for numbers in dict.fromkeys(row["numbers"] for row in table):
        cells = {(_names(row), row["target"]): _cell(row) for row in table if row["numbers"] == numbers}
        targets = list(dict.fromkeys(target for _, target in cells))
        lines += ["", f"## {numbers}", "", f"| layer | layout | kernel | {' | '.join(targets)} |"]
        lines.append("| --- " * (len(targets) + 3) + "|")
        for names in dict.fromkeys(names for names, _ in cells):
            found = (cells.get((names, target), "") for target in targets)
            lines.append(f"| {' | '.join(names)} | {' | '.join(found)} |")
    head = {
        "numbers": "numbers",
        "stages": "stages",
        "instructions": "instructions",
        "barriers": "barriers",
        "stores": "shared_stores",
        **{f"programs, {batch}": f"programs_{batch}" for batch in BATCHES},
    }
    filled = [(*_names(row), *(row[key] for key in head.values())) for row in table if row["target"] == BOTH_LAYOUTS]
    lines += ["", f"## {BOTH_LAYOUTS}", "", markdown(("layer", "layout", "kernel", *head), filled)]
    return "\n".join(lines) + "\n"


def _names(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["layer"], row["layout"], row["kernel"]


def _cell(row: dict[str, Any]) -> str:
    spilled = f" !{row['spilled']}" if row["spilled"] else ""
    matrix = " m" if row["matrix"] else ""
    return f"{row['registers']} / {row['shared'] / 1024:.0f} / {row['occupancy']:.0%}{matrix}{spilled}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--layers", nargs="+", choices=[*LAYERS, STEP], default=[*LAYERS, STEP])
    parser.add_argument("--numbers", nargs="+", choices=NUMBERS, default=list(NUMBERS))
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    print(f"Triton {triton.__version__}")
    layers = [layer for layer in options.layers if layer != STEP]
    wanted = [(str(each), partial(rows, each)) for each in promises(options.targets, layers, options.numbers)]
    if STEP in options.layers:
        wanted += [(f"{STEP} on {target}", partial(rows_of_step, target)) for target in options.targets]
    table, wrong = [], 0
    for name, compiled in wanted:
        try:
            found = compiled()
            complaints = [fault for row in found for fault in faults(row)]
        except Exception as error:
            found, complaints = [], [f"{name}: {type(error).__name__}: {error}"]
        table += found
        wrong += len(complaints)
        for complaint in complaints:
            print(complaint, flush=True)
    if options.out:
        keep(options.out, "compile_gate", table, as_markdown(table))
    print(f"{len(table)} kernels, {wrong} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
