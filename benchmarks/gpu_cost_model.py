"""What the machine code of the Triton kernels would cost on an H100 that reached all of its peaks: modelled, not measured.

    python benchmarks/gpu_cost_model.py [--case NAME ...] [--json FILE]

Each launch of a layer is compiled for sm_90 without a GPU (`convpool.gpu.offline`). A kernel's time is bounded from below by
four things that run side by side, and the model takes the largest:

- issue: instructions of all warps over the issue slots of all multiprocessors. A kernel's main loop is the loop of its machine
  code with most multiply-adds (or matrix instructions); it counts once a trip, everything else once.
- matrix: products on the matrix unit, padding included, over its peak rate.
- L2: bytes that tiles load and store, as if no level-1 cache helped matrix tiles, over the L2 bandwidth.
- DRAM: each tensor once, over the memory bandwidth.

What it leaves out (latency, launch overhead, bank conflicts, partial waves) a real run pays on top. Compare its figures with
each other, never with a measurement.
"""

import argparse
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from convpool.cases import Case, by_name
from convpool.gpu import launch
from convpool.gpu.offline import TARGETS, Launched, compiled_launches, machine_code, resources
from convpool.parity import Layout
from convpool.protocol import Plan

MULTIPROCESSORS, CLOCK = 132, 1.755e9  # H100 SXM: NVIDIA H100 Tensor Core GPU Architecture, table 3 and boost clock
DRAM, L2 = 3.35e12, 5.5e12  # bytes a second; L2 is what microbenchmarks of others read, the data sheet has no figure
MATRIX = {4: 495e12, 2: 990e12}  # dense TF32 and half-precision products and sums a second, by operand size

LAYERS = {  # the layers of gpu_notes' table, in the memory format that they prefer
    "cnn-1": "nchw",
    "cnn-2": "channels_last",
    "lenet5-1": "nchw",
    "lenet5-2": "nchw",
}
_FUSED = Plan("triton", "fused", "", "")
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


def layer_costs(case: Case, dtype: torch.dtype, layout: Layout, precision: str = "tf32") -> list[Cost]:
    """The launches of one forward and backward pass (all gradients), in order."""
    torch.backends.cudnn.conv.fp32_precision = precision
    like = {"dtype": dtype, "device": "meta"}
    fmt = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.empty(case.x_shape, **like).to(memory_format=fmt)
    weight = torch.empty(case.weight_shape, **like).to(memory_format=fmt)
    bias = torch.empty(case.out_channels, **like)
    with compiled_launches(TARGETS["sm_90"]) as launched:
        y, code = launch.forward(x, weight, bias, case.geometry, _FUSED, True)
        launch.backward(y, code, x, weight, case.geometry, _FUSED, (True, True, True))
    return [cost(each) for each in launched]


def cost(launched: Launched) -> Cost:
    arguments = launched.arguments
    loop, rest = _main_loop(machine_code(launched.kernel))
    trips = _trips(launched)
    instructions = launched.programs * launched.warps * (loop.total() * trips + rest)
    matrix = tile_bytes = 0.0
    if any(loop[op] for op in _MATRIX_OPS):
        rows, columns, summed = _tile(launched)
        itemsize = arguments["w_ptr" if "w_ptr" in arguments else "dy_ptr"].element_size()
        matrix = launched.programs * trips * 2 * rows * columns * summed / MATRIX[itemsize]
        tile_bytes = launched.programs * trips * (rows + columns) * summed * itemsize
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


def _main_loop(code: str) -> tuple[Counter[str], int]:
    """Instructions of the innermost loop with most multiply-adds, by opcode, and the number of all others."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in code.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(opcodes)
        elif found := re.match(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z0-9_]+)(.*)", line):
            opcode, operands = found.groups()
            opcodes.append(opcode)
            back = re.search(r"\((\.L_x_\d+)\)", operands) if opcode == "BRA" else None
            if back and labels.get(back[1], len(opcodes)) < len(opcodes) - 1:  # a branch to itself ends every kernel
                loops.append((labels[back[1]], len(opcodes)))
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [Counter(opcodes[start:end]) for start, end in innermost]
    total = sum(opcode != "NOP" for opcode in opcodes)
    if not bodies:
        return Counter(), total
    main = max(bodies, key=lambda body: (sum(body[op] for op in _MATRIX_OPS), sum(body[op] for op in _MATH)))
    return main, total - main.total()


def _trips(launched: Launched) -> int:
    """How often a program goes round its main loop."""
    a, size, shape = launched.arguments, launched.arguments["size"], launched.arguments["shape"]
    taps = shape.kernel[0] * shape.kernel[1]

    def parts(total: int, block: int) -> int:
        return -(-total // block)

    match launched.name:
        case "forward_direct":
            return parts(min(a["CHANNELS"], size.outputs), a["BLOCK_O"])
        case "forward_dot":
            flat = parts(a["INPUTS"] * taps, a["BLOCK_K"])
            return flat or taps * parts(size.inputs, a["BLOCK_K"])
        case "weight_grad":
            return parts(a["range_size"], a["BLOCK_M"])
        case "sum_partials":
            return parts(a["ranges"], a["BLOCK_R"])
        case "input_grad":
            return taps * parts(size.outputs, a["BLOCK_O"])
    return 1


def _tile(launched: Launched) -> tuple[int, int, int]:
    """Rows, columns and summed products of the matrix product in one trip."""
    a, pool = launched.arguments, launched.arguments["shape"].pool
    window = pool[0] * pool[1]
    match launched.name:
        case "forward_dot":
            return a["BLOCK_M"] * (1 << (window - 1).bit_length()), a["BLOCK_O"], a["BLOCK_K"]
        case "weight_grad":
            return a["BLOCK_O"], a["BLOCK_C"], a["BLOCK_M"] * window
        case _:
            return a["BLOCK_M"], a["BLOCK_C"], a["BLOCK_O"]


def main() -> None:
    for name, layout in LAYERS.items():
        for dtype in (torch.float32, torch.bfloat16):
            case = by_name(name).at_full_size()
            for found in layer_costs(case, dtype, layout):
                print(f"{name:10} {str(dtype)[6:]:9} {layout:14} {found.kernel:15} bound {found.bound:6.2f} | issue {found.issue:6.2f} matrix {found.matrix:5.2f} L2 {found.l2:5.2f} DRAM {found.dram:5.2f} us | {found.instructions} instr, {found.registers} registers, {found.shared} B shared")


if __name__ == "__main__":
    main()
