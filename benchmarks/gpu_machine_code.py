"""What is read from a kernel's machine code: counts for any GPU, and for Hopper its loops and how long one warp takes.

A warp issues its instructions in order. When it may issue the next one the compiler has written into each: so many
cycles to stall, and up to six scoreboards to wait for, which loads and others of unknown duration release (bits 105 to
125 of an instruction: Jia et al., Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking, 2018). So a walk
through the code tells how long a warp takes that nobody hinders, with loads ahead and asynchronous copies as they are.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

from convpool.gpu.offline import machine_code

# Cycles. Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture, 2024: latency of the L2 cache and
# of shared memory. Barriers and all other instructions with a scoreboard are taken to last as long as the latter.
L2_LATENCY, SHARED_LATENCY = 262, 29
PRODUCTS = {"tf32": 1024, "half": 2048}  # of one multiprocessor in a cycle: NVIDIA H100 architecture, table 2

MATRIX_OPS = ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA", "DMMA")
_MATH = ("FFMA", "HFMA2", "FFMA2", *MATRIX_OPS)
_FROM_L2 = ("LDG", "LD", "ATOM", "ATOMG", "MEMBAR")
_NO_SCOREBOARD = 7


@dataclass(frozen=True)
class Counts:
    """Instructions of a kernel as it lies in memory: all, barriers of a block, stores to shared memory."""

    instructions: int
    barriers: int
    shared_stores: int


def counts(kernel: Any) -> Counts:
    code = machine_code(kernel)
    if kernel.metadata.target.backend == "cuda":
        found = Counter(each.opcode for each in _parse(code)[0])
        return Counts(found.total() - found["NOP"], found["BAR"], found["STS"] + found["STSM"])
    found = Counter(re.findall(r"^\s+([a-z]+_\w+)\s", code, re.MULTILINE))
    stores = sum(count for name, count in found.items() if name.startswith(("ds_write", "ds_store")))
    return Counts(found.total() - found["s_nop"], found["s_barrier"], stores)


@dataclass(frozen=True)
class Instruction:
    """opcode: without what qualifies it. waits: a bit for each scoreboard. sets: the scoreboard it releases, or 7."""

    opcode: str
    text: str
    stall: int
    waits: int
    sets: int


Region = tuple[int, int]  # of instructions: the first, and the one after the last


@dataclass(frozen=True)
class Code:
    """Instructions of a kernel by where they are.

    main: the innermost loop with most multiply-adds (or matrix instructions), empty if there is none. around: the loop
    around that, or main. What other loops hold is left out: in a gradient kernel they are those over winners alone,
    which only a result that is not finite enters, and the one in which the last program adds partial sums.
    """

    instructions: list[Instruction]
    main: Region
    around: Region
    once: list[int]  # those in no loop

    @staticmethod
    def of(kernel: Any) -> "Code":
        return Code.read(machine_code(kernel))

    @staticmethod
    def read(code: str) -> "Code":
        instructions, loops = _parse(code)

        def weight(loop: Region) -> tuple[int, int]:
            body = Counter(each.opcode for each in instructions[slice(*loop)])
            return sum(body[op] for op in MATRIX_OPS), sum(body[op] for op in _MATH)

        in_loops = {at for start, end in loops for at in range(start, end)}
        once = [at for at, each in enumerate(instructions) if at not in in_loops and each.opcode != "NOP"]
        innermost = [a for a in loops if not any(_inside(b, a) for b in loops)]
        main = max(innermost, key=weight, default=(0, 0))
        if weight(main)[0] == 0 < weight((0, len(instructions)))[0]:
            main = (0, 0)  # one trip was unrolled, and what is left are loops over winners
        around = min((b for b in loops if _inside(main, b)), key=lambda b: b[1] - b[0], default=main)
        return Code(instructions, main, around, once)

    @property
    def nested(self) -> bool:
        return self.around != self.main

    def issued(self, trips: int, turns: int) -> int:
        """Instructions of a warp that goes `trips` times round the outer loop, `turns` times the inner one in each."""
        return self._sum(lambda each: 1, trips, turns)

    def products(self, trips: int, turns: int) -> int:
        """Multiply-adds that the matrix unit makes for such a warp."""
        return self._sum(_products, trips, turns)

    def _sum(self, value: Callable[[Instruction], int], trips: int, turns: int) -> int:
        inner = sum(map(value, self.instructions[slice(*self.main)]))
        outer = sum(map(value, self.instructions[slice(*self.around)])) - inner
        return sum(value(self.instructions[at]) for at in self.once) + trips * (outer + turns * inner)

    def cycles(self, trips: int, turns: int) -> int:
        """How long a warp takes that goes round the loops so often and that nobody hinders."""
        warp = _Warp()

        def pass_through(start: int, end: int) -> None:
            for each in self.instructions[start:end]:
                warp.issue(each)

        def outer() -> None:
            pass_through(self.around[0], self.main[0])
            warp.repeat(turns, lambda: pass_through(*self.main))
            pass_through(self.main[1], self.around[1])

        for at in self.once:
            if at < self.around[0]:
                warp.issue(self.instructions[at])
        warp.repeat(trips, outer)
        for at in self.once:
            if at >= self.around[1]:
                warp.issue(self.instructions[at])
        return warp.now + warp.left_out


def _parse(code: str) -> tuple[list[Instruction], set[Region]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    loops: set[Region] = set()
    lines = iter(code.splitlines())
    for line in lines:
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*(([A-Z0-9_]+).*?);", line):
            text, opcode = found.groups()
            control = int(next(lines).split()[1], 16) >> 41  # the upper half of the instruction's encoding
            instructions.append(Instruction(opcode, text, control & 15, control >> 11 & 63, control >> 5 & 7))
            back = re.search(r"\((\.L_x_\d+)\)", text) if opcode == "BRA" else None
            if (
                back and labels.get(back[1], len(instructions)) < len(instructions) - 1
            ):  # one to itself ends every kernel
                loops.add((labels[back[1]], len(instructions)))
    return instructions, loops


def _products(each: Instruction) -> int:
    """Of one warp: four share the products of an HGMMA."""
    if each.opcode == "HGMMA":
        return prod(map(int, re.findall(r"(\d+)x(\d+)x(\d+)", each.text)[0])) // 4
    summed = re.match(r"HMMA\.168(\d+)\.", each.text)  # 16 rows, 8 columns
    return 16 * 8 * int(summed[1]) if summed else 0


def _inside(a: Region, b: Region) -> bool:
    return a != b and b[0] <= a[0] and a[1] <= b[1]


@dataclass
class _Warp:
    """A warp on its way: cycle by cycle, but for rounds of a loop that are left out because they last as long."""

    now: int = 0
    left_out: int = 0
    ready: list[int] = field(default_factory=lambda: [0] * 6)  # when each scoreboard is released
    copied: int = 0  # when the last asynchronous copy arrives, and each group of them
    copies: list[int] = field(default_factory=list)
    multiplied: int = 0  # when the matrix unit is done with what it was given, and with each group
    products: list[int] = field(default_factory=list)

    def issue(self, each: Instruction) -> None:
        self.now = max(self.now, *(ready for n, ready in enumerate(self.ready) if each.waits >> n & 1), 0)
        match each.opcode:
            case "LDGSTS":
                self.copied = self.now + L2_LATENCY
            case "LDGDEPBAR":
                self.copies.append(self.copied)
            case "DEPBAR" | "WARPGROUP" if ".LE" in each.text:
                groups = self.copies if each.opcode == "DEPBAR" else self.products
                under_way = int(each.text.rsplit(", ", 1)[1], 16)
                self.now = max([self.now, *groups[: len(groups) - under_way]])
            case "HGMMA":
                rate = PRODUCTS["tf32" if ".TF32" in each.text else "half"]
                self.multiplied = max(self.multiplied, self.now) + 4 * _products(each) // rate
                if "gsb0" in each.text:
                    self.products.append(self.multiplied)
            case "BAR":
                self.now += SHARED_LATENCY
            case _ if each.sets != _NO_SCOREBOARD:
                latency = L2_LATENCY if each.opcode in _FROM_L2 else SHARED_LATENCY
                self.ready[each.sets] = max(self.ready[each.sets], self.now + latency)
        self.now += max(1, each.stall)

    def repeat(self, times: int, body: Callable[[], None]) -> None:
        """The first round is walked, and the second for all that follow."""
        if times > 0:
            body()
        if times > 1:
            before = self.now + self.left_out
            body()
            self.left_out += (times - 2) * (self.now + self.left_out - before)
