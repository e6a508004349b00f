"""What the machine code of the Triton kernels would cost on an H100 that reached all of its peaks: modelled, not
measured.

    python benchmarks/gpu_cost_model.py [--numbers tf32 ...] [--out FOLDER]

Each launch of a layer is compiled for sm_90 without a GPU (`convpool.gpu.offline`). A kernel's time is bounded from
below by four things that run side by side, and the model takes the largest:

- issue: instructions of all warps over the issue slots of all multiprocessors. A kernel's main loop is the loop of its
  machine code with most multiply-adds (or matrix instructions); it counts once a trip, everything else once.
- matrix: products on the matrix unit, padding included, over its peak rate.
- L2: bytes that tiles load and store, as if no level-1 cache helped matrix tiles, over the L2 bandwidth.
- DRAM: each tensor once, over the memory bandwidth.

What it leaves out (latency, launch overhead, bank conflicts, partial waves) a real run pays on top. Compare its
figures with each other, never with a measurement.

`--out` keeps the table: cost_model.json with a row a launch, and cost_model.md to read.
"""

import argparse
from math import prod
import numpy as np
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_tables import keep
from triton import cdiv

from convpool.gpu import launch
from convpool.gpu.input_grad import windows_of_cell, tap_between
from convpool.gpu.offline import TARGETS, Launched, compiled_launches, machine_code, resources
from convpool.gpu.tiles import unrolled
from convpool.testing.cases import Case, by_name
from convpool.testing.parity import Layout

MULTIPROCESSORS, CLOCK = 132, 1.755e9  # H100 SXM: NVIDIA H100 Tensor Core GPU Architecture, table 3 and boost clock
DRAM, L2 = 3.35e12, 5.5e12  # bytes a second; L2 is what microbenchmarks of others read, the data sheet has no figure
MATRIX = {4: 495e12, 2: 990e12}  # dense TF32 and half-precision products and sums a second, by operand size

LAYERS = {  # in the memory format that they prefer
    "cnn-1": "nchw",
    "cnn-2": "channels_last",
    "lenet5-1": "nchw",
    "lenet5-2": "nchw",
}
NUMBERS = {"tf32": torch.float32, "bfloat16": torch.bfloat16}
_MATRIX_OPS = ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA", "DMMA")
_MATH = ("FFMA", "HFMA2", "FFMA2", *_MATRIX_OPS)


@dataclass(frozen=True)
class Cost:
    """One launch: microseconds a term, and the instructions that all its warps issue."""

    kernel: str
    issue: float
    matrix: float
    l2: float
    dram: float
    instructions: int
    registers: int
    shared: int

    @property
    def bound(self) -> float:
        return max(self.issue, self.matrix, self.l2, self.dram)


def layer_costs(case: Case, dtype: torch.dtype, layout: Layout) -> list[Cost]:
    """The launches of one forward and backward pass (all gradients), in order; float32 in TF32."""
    torch.backends.cudnn.allow_tf32 = True  # of all flags the one that leaves the others readable
    like = {"dtype": dtype, "device": "meta"}
    fmt = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.empty(case.x_shape, **like).to(memory_format=fmt)
    weight = torch.empty(case.weight_shape, **like).to(memory_format=fmt)
    bias = torch.empty(case.out_channels, **like)
    with compiled_launches(TARGETS["sm_90"]) as launched:
        y, code = launch.forward(x, weight, bias, case.geometry, "fused", True)
        launch.backward(y, code, x, weight, case.geometry, "fused", (True, True, True))
    return [cost(each) for each in launched]


def cost(launched: Launched) -> Cost:
    arguments = launched.arguments
    code = _loops(machine_code(launched.kernel))
    trips, inner = _trips(launched)
    turns = inner if code.around else 1  # without a loop around it, the loop inside was unrolled
    per_program = code.outside + trips * (code.around + turns * code.main.total())
    instructions = launched.programs * launched.warps * per_program
    trips *= inner
    loop = code.main
    matrix = tile_bytes = 0.0
    if any(loop[op] for op in _MATRIX_OPS):
        rows, columns, summed, loaded = _tile(launched)
        itemsize = arguments["w_ptr" if "w_ptr" in arguments else "dy_ptr"].element_size()
        matrix = launched.programs * trips * 2 * rows * columns * summed / MATRIX[itemsize]
        tile_bytes = launched.programs * trips * loaded * itemsize
    tensors = {id(t): t.numel() * t.element_size() for t in arguments.values() if isinstance(t, torch.Tensor)}
    issue = instructions / (MULTIPROCESSORS * 4 * CLOCK)
    found = resources(launched.kernel)
    return Cost(
        launched.name,
        *(round(1e6 * seconds, 2) for seconds in (issue, matrix, tile_bytes / L2, sum(tensors.values()) / DRAM)),
        instructions,
        found.registers,
        found.shared,
    )


@dataclass(frozen=True)
class _Loops:
    """Instructions of a kernel by where they are.

    main: the innermost loop with most multiply-adds, by opcode. around: in the loop around that, if there is one.
    outside: in no loop. What other loops hold is left out: in a gradient kernel they are those over winners alone,
    which only a result that is not finite enters.
    """

    main: Counter[str]
    around: int
    outside: int


def _loops(code: str) -> _Loops:
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops: set[tuple[int, int]] = set()
    for line in code.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(opcodes)
        elif found := re.match(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z0-9_]+)(.*)", line):
            opcode, operands = found.groups()
            opcodes.append(opcode)
            back = re.search(r"\((\.L_x_\d+)\)", operands) if opcode == "BRA" else None
            if back and labels.get(back[1], len(opcodes)) < len(opcodes) - 1:  # a branch to itself ends every kernel
                loops.add((labels[back[1]], len(opcodes)))

    def inside(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and b[0] <= a[0] and a[1] <= b[1]

    def weight(loop: tuple[int, int]) -> tuple[int, int]:
        body = Counter(opcodes[slice(*loop)])
        return sum(body[op] for op in _MATRIX_OPS), sum(body[op] for op in _MATH)

    in_loops = {at for start, end in loops for at in range(start, end)}
    outside = sum(opcode != "NOP" for at, opcode in enumerate(opcodes) if at not in in_loops)
    innermost = [a for a in loops if not any(inside(b, a) for b in loops)]
    if not innermost:
        return _Loops(Counter(), 0, outside)
    main = max(innermost, key=weight)
    enclosing = min((b for b in loops if inside(main, b)), key=lambda b: b[1] - b[0], default=main)
    return _Loops(Counter(opcodes[slice(*main)]), enclosing[1] - enclosing[0] - (main[1] - main[0]), outside)


def _trips(launched: Launched) -> tuple[int, int]:
    """How often a program goes round its main loop: trips of the loop around it, times trips within each of those."""
    a = launched.arguments
    if launched.name == "sum_partials":
        return cdiv(a["ranges"], a["BLOCK_R"]), 1
    size, shape = a["size"], a["shape"]
    taps = shape.kernel[0] * shape.kernel[1]
    window = shape.pool[0] * shape.pool[1]
    match launched.name:
        case "forward_direct":
            return cdiv(min(a["CHANNELS"], size.outputs), a["BLOCK_O"]), 1
        case "forward_dot":
            flat = cdiv(a["INPUTS"] * taps, a["BLOCK_K"])
            return flat or taps * cdiv(size.inputs, a["BLOCK_K"]), 1
        case "weight_grad":
            return cdiv(a["range_size"], a["BLOCK_M"]), window // unrolled(shape)
        case "input_grad":
            windows = windows_of_cell(shape, 0) * windows_of_cell(shape, 1)
            if a["APART"]:  # windows and taps are unrolled
                return cdiv(size.outputs, a["BLOCK_O"]), 1
            return windows * cdiv(size.outputs, a["BLOCK_O"]), window
    return 1, 1


def _tile(launched: Launched) -> tuple[int, int, int, float]:
    """Rows, columns and summed products of the matrix products in one trip, and the elements loaded for them."""
    a, shape = launched.arguments, launched.arguments["shape"]
    window = shape.pool[0] * shape.pool[1]
    match launched.name:
        case "forward_dot":
            rows, columns, summed = a["BLOCK_M"] * (1 << (window - 1).bit_length()), a["BLOCK_O"], a["BLOCK_K"]
            return rows, columns, summed, (rows + columns) * summed
        case "weight_grad":  # dy serves the whole window, x one position of it
            rows, columns, summed = a["BLOCK_O"], a["BLOCK_C"], a["BLOCK_M"] * unrolled(shape)
            return rows, columns, summed, (rows / window + columns) * summed
        case "input_grad" if a["APART"]:  # all windows' dy and all taps' weight once
            windows, taps = windows_of_cell(shape, 0) * windows_of_cell(shape, 1), prod(shape.kernel)
            products = sum(tap_between(shape, *at) >= 0 for at in np.ndindex(windows, window, prod(shape.pool_stride) * prod(shape.stride)))
            rows, columns, summed = a["BLOCK_M"], a["BLOCK_C"], a["BLOCK_O"]
            return rows, columns, summed * products, (rows * windows + columns * taps) * summed
        case _:  # as above, dy and weight
            rows, columns, summed = a["BLOCK_M"], a["BLOCK_C"], a["BLOCK_O"]
            return rows, columns, summed, (rows / window + columns) * summed


def rows(layer: str, numbers: str) -> list[dict[str, Any]]:
    case = by_name(layer).at_full_size()
    g = case.geometry
    products = g.batch * g.pooled_height * g.pooled_width * g.out_channels * g.reduction  # one live position a window
    return [
        {
            "layer": layer,
            "layout": LAYERS[layer],
            "numbers": numbers,
            **asdict(cost),
            "modelled_us": cost.bound,
            "instructions_a_product": float(f"{cost.instructions / products:.3g}"),
        }
        for cost in layer_costs(case, NUMBERS[numbers], LAYERS[layer])
    ]


def as_markdown(table: list[dict[str, Any]]) -> str:
    lines = [
        "# What the Triton kernels would cost on an H100: modelled, not measured",
        "",
        "By `python benchmarks/gpu_cost_model.py --out benchmarks/results/gpu`, compiled by Triton "
        f"{triton.__version__} for sm_90; nothing was run. The script says what the model counts and what it leaves "
        "out. Microseconds are those of a GPU that reached all of its peaks. Instructions are warps', in all and for "
        "each product of a live window.",
        "",
        "| layer | numbers | kernel | modelled us | issue | matrix | L2 | DRAM | instructions | a product |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        "| {layer}, {layout} | {numbers} | {kernel} | {modelled_us} | {issue} | {matrix} | {l2} | {dram} "
        "| {instructions} | {instructions_a_product} |".format(**row)
        for row in table
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Model what the Triton kernels would cost on an H100.")
    parser.add_argument("--numbers", nargs="+", choices=NUMBERS, default=list(NUMBERS))
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    table = [row for layer in LAYERS for numbers in options.numbers for row in rows(layer, numbers)]
    print(as_markdown(table), end="")
    if options.out:
        keep(options.out, "cost_model", table, as_markdown(table))


if __name__ == "__main__":
    main()
