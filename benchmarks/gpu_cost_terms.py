"""What one launch would cost on an H100: bounds from below, each of stated constants and of the kernel's machine code.

A launch takes its node of a graph, and then the longest of things that run side by side on the busiest multiprocessor:

- issue: instructions of its warps over its issue slots.
- matrix: products on its matrix unit, padding included, over the peak rate.
- L2, DRAM: of the whole device. Bytes that matrix tiles load, as if no level-1 cache helped, over the L2 bandwidth;
  each tensor once over the memory bandwidth.
- chain: the cycles of a warp that nobody hinders (`gpu_machine_code.py`), as often as programs follow one another.

Where the last program to finish adds partial sums, that comes after all.

The old terms are the first four with all work spread evenly, and no launch: `Cost.old`.

What is left out: caches of level 1, bank conflicts, queues for memory, programs that start late.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from gpu_machine_code import L2_LATENCY, Code
from gpu_multiprocessors import resident
from triton import cdiv

from convpool.gpu.input_grad import windows_of_cell
from convpool.gpu.offline import Launched, resources
from convpool.gpu.tiles import unrolled

MULTIPROCESSORS, CLOCK = 132, 1.755e9  # H100 SXM: NVIDIA H100 Tensor Core GPU Architecture, table 3 and boost clock
SCHEDULERS = 4  # of a multiprocessor, each of which issues one instruction of one warp in a cycle
DRAM, L2 = 3.35e12, 5.5e12  # bytes a second; L2 is what microbenchmarks of others read, the data sheet has no figure
L2_PORT = 64  # bytes a cycle from L2 into one multiprocessor: NVIDIA A100 Tensor Core GPU Architecture, and since
MATRIX = {4: 495e12, 2: 990e12}  # dense TF32 and half-precision products and sums a second, by operand size
NODE_US = 1.105  # the least kernel as a node of a graph, measured on an H200: results/gpu/nvidia-h200/REPORT.md


@dataclass(frozen=True)
class Cost:
    """One launch: microseconds a term, and what they were counted from.

    issue, matrix: with all work spread evenly. busiest: programs of the busiest multiprocessor, of `programs` over all.
    chain: of one program. waves: how many follow one another where `resident` fit at once.
    """

    kernel: str
    issue: float
    matrix: float
    l2: float
    dram: float
    chain: float
    last_block: float
    programs: int
    resident: int
    warps: int
    instructions: int
    registers: int
    shared: int

    @property
    def old(self) -> float:
        return round(max(self.issue, self.matrix, self.l2, self.dram), 2)

    @property
    def busiest(self) -> int:
        return cdiv(self.programs, MULTIPROCESSORS)

    @property
    def waves(self) -> int:
        return cdiv(self.busiest, self.resident)

    @property
    def issue_balanced(self) -> float:
        """Warps stay with their scheduler, so whole ones count."""
        a_warp = self.instructions / (self.programs * self.warps)
        return 1e6 * cdiv(self.busiest * self.warps, SCHEDULERS) * a_warp / CLOCK

    @property
    def matrix_balanced(self) -> float:
        return self.matrix * self.busiest * MULTIPROCESSORS / self.programs

    @property
    def modelled(self) -> float:
        longest = max(self.issue_balanced, self.matrix_balanced, self.l2, self.dram, self.waves * self.chain)
        return round(NODE_US + longest + self.last_block, 2)


def cost(launched: Launched) -> Cost:
    arguments = launched.arguments
    code = Code.of(launched.kernel)
    trips, turns = _trips(launched)
    walked = turns if code.nested else 1  # without a loop around it, the loop inside was unrolled
    instructions = launched.programs * launched.warps * code.issued(trips, walked)
    matrix = tile_bytes = 0.0
    if products := launched.programs * launched.warps * code.products(trips, walked):
        itemsize = arguments["w_ptr" if "w_ptr" in arguments else "dy_ptr"].element_size()
        matrix = 2 * products / MATRIX[itemsize]
        tile_bytes = launched.programs * trips * turns * _loaded(launched) * itemsize
    tensors = {id(t): t.numel() * t.element_size() for t in arguments.values() if isinstance(t, torch.Tensor)}
    issue = instructions / (MULTIPROCESSORS * SCHEDULERS * CLOCK)
    chain = code.cycles(trips, walked) / CLOCK
    found = resources(launched.kernel)
    terms = (issue, matrix, tile_bytes / L2, sum(tensors.values()) / DRAM, chain, last_block(launched) / CLOCK)
    return Cost(
        launched.name,
        *(round(1e6 * seconds, 3) for seconds in terms),
        launched.programs,
        resident("sm_90", launched.warps, found),
        launched.warps,
        instructions,
        found.registers,
        found.shared,
    )


def last_block(launched: Launched) -> float:
    """Cycles of the last program of a block of dw: it adds the block's rows of all ranges, BLOCK_R at a time.

    Its loads come through the port of its multiprocessor alone, and each trip waits for one.
    """
    a = launched.arguments
    if "counters_ptr" not in a:
        return 0
    row = a["BLOCK_O"] * a["BLOCK_C"] * 4  # bytes of a block's partial sums, which are float32
    return added_by_one(a["ranges"], row, a.get("BLOCK_R", 1))


def added_by_one(ranges: int, row: int, at_once: int) -> float:
    """Cycles in which one program adds `ranges` rows of so many bytes, `at_once` of them in a trip.

    Two more trips to L2 are those of the partial sums that were written last and of the counter.
    """
    return cdiv(ranges, at_once) * max(L2_LATENCY, at_once * row / L2_PORT) + 2 * L2_LATENCY


def _trips(launched: Launched) -> tuple[int, int]:
    """How often a program goes round its main loop: trips of the loop around it, times trips within each of those."""
    a = launched.arguments
    if launched.name == "sum_partials":
        return cdiv(a["ranges"], a["BLOCK_R"]), 1
    size, shape = a["size"], a["shape"]
    taps, window = prod(shape.kernel), prod(shape.pool)
    match launched.name:
        case "forward_direct":
            return cdiv(min(a["CHANNELS"], size.outputs), a["BLOCK_O"]), 1
        case "forward_dot":
            if a.get("FLAT", a["INPUTS"]):
                return cdiv(size.inputs * taps, a["BLOCK_K"]), 1
            return taps * cdiv(size.inputs, a["BLOCK_K"]), 1
        case "weight_grad":
            return cdiv(a["range_size"], a["BLOCK_M"]), window // unrolled(shape)
        case "input_grad":
            if a.get("APART"):  # windows and taps are unrolled
                return cdiv(size.outputs, a["BLOCK_O"]), 1
            windows = windows_of_cell(shape, 0) * windows_of_cell(shape, 1)
            return windows * cdiv(size.outputs, a["BLOCK_O"]), window
    return 1, 1


def _loaded(launched: Launched) -> float:
    """Elements that a program loads for the matrix products of one trip."""
    a, shape = launched.arguments, launched.arguments["shape"]
    window = prod(shape.pool)
    match launched.name:
        case "forward_dot":
            return (a["BLOCK_M"] * (1 << (window - 1).bit_length()) + a["BLOCK_O"]) * a["BLOCK_K"]
        case "weight_grad":  # dy serves the whole window, x one position of it
            return (a["BLOCK_O"] / window + a["BLOCK_C"]) * a["BLOCK_M"] * unrolled(shape)
        case "input_grad" if a.get("APART"):  # each window's dy once, and each tap's weight
            windows = windows_of_cell(shape, 0) * windows_of_cell(shape, 1)
            return (a["BLOCK_M"] * windows + a["BLOCK_C"] * prod(shape.kernel)) * a["BLOCK_O"]
        case _:  # dy serves the whole window
            return (a["BLOCK_M"] / window + a["BLOCK_C"]) * a["BLOCK_O"]


def row(cost: Cost) -> dict[str, Any]:
    """A cost as a table keeps it."""
    return {
        "kernel": cost.kernel,
        "modelled_us": cost.modelled,
        "old_us": cost.old,
        **{
            term: round(getattr(cost, term), 2) for term in ("issue_balanced", "matrix_balanced", "l2", "dram", "chain")
        },
        "waves": cost.waves,
        "last_block": cost.last_block,
        "issue": round(cost.issue, 2),
        "matrix": round(cost.matrix, 2),
        "programs": cost.programs,
        "resident": cost.resident,
        "instructions": cost.instructions,
        "registers": cost.registers,
        "shared": cost.shared,
    }
