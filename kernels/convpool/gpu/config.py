"""How each kernel is launched: block sizes, warps and pipeline stages, from the shape and the architecture's limits."""

from dataclasses import dataclass
from functools import cache

from convpool.geometry import Geometry

KIB = 1024


@dataclass(frozen=True)
class Architecture:
    """What the configurations must respect.

    shared_memory: bytes that one block may use.
    matrix_unit: Triton has dot products on the matrix unit for it, in float16 and bfloat16.
    tf32: the matrix unit takes float32 as TF32.
    """

    name: str
    shared_memory: int
    matrix_unit: bool = True
    tf32: bool = True
    interpreted: bool = False


INTERPRETER = Architecture("interpreter", 1 << 40, matrix_unit=False, tf32=False, interpreted=True)

# Shared memory a block may opt in to: CUDA C++ Programming Guide, table of technical specifications; for gfx9 LDS is 64 KiB.
_CUDA = {
    75: Architecture("sm_75", 64 * KIB, matrix_unit=False, tf32=False),  # this Triton has no dot on Turing's matrix unit
    80: Architecture("sm_80", 163 * KIB),
    86: Architecture("sm_86", 99 * KIB),
    87: Architecture("sm_87", 163 * KIB),
    89: Architecture("sm_89", 99 * KIB),
    90: Architecture("sm_90", 227 * KIB),
    100: Architecture("sm_100", 227 * KIB),
    103: Architecture("sm_103", 227 * KIB),
    120: Architecture("sm_120", 99 * KIB),
}


@cache
def architecture_of(backend: str, arch: int | str) -> Architecture:
    """The limits of a Triton target; for an unknown one the smallest of its family."""
    if backend == "cuda":
        capability = int(arch)
        newer = Architecture(f"sm_{capability}", 99 * KIB)
        older = Architecture(f"sm_{capability}", 48 * KIB, matrix_unit=False, tf32=False)
        return _CUDA.get(capability, newer if capability >= 80 else older)
    name = str(arch)
    return Architecture(name, 64 * KIB, matrix_unit=name.startswith("gfx9"), tf32=name == "gfx942")


@dataclass(frozen=True)
class Launch:
    """One kernel's blocks as those of a matrix product (rows, columns, summed), 0 where a kernel has no such axis.

    inputs: channels of a group where the kernel is compiled for their number, else 0.
    ranges: for the weight gradient, into how many ranges the pooled positions are cut.
    """

    rows: int
    columns: int = 0
    summed: int = 0
    warps: int = 4
    stages: int = 1
    inputs: int = 0
    ranges: int = 1
    channels: int = 0

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


_PATCH_VALUES = 80  # forward_direct keeps a patch in registers: beyond this many values a lane it would spill
_PATCH_PRODUCTS = 288  # and unrolls this many multiply-adds a channel at most
_BLOCKS_WANTED = 264  # two blocks for each of 132 multiprocessors; fixed, so that sums come out alike on every device


def forward(g: Geometry, itemsize: int, arch: Architecture, x_last: bool, y_last: bool) -> Launch:
    """`summed` is 0 for forward_direct; else the launch is forward_dot's."""
    if _fits_registers(g):
        return _forward_direct(g, arch, y_last)
    return _forward_dot(g, itemsize, arch, x_last)


def weight_grad(g: Geometry, itemsize: int, arch: Architecture, needs_weight: bool) -> Launch:
    outputs, taps = g.out_channels // g.settings.groups, g.reduction
    rows = 1 if outputs == 1 else max(16, min(64, _power_above(outputs)))
    columns = max(16, min(64, _power_above(taps)))
    positions = g.batch * g.pooled_height * g.pooled_width
    if arch.interpreted:
        summed = max(16, min(1024, _power_above(positions)))
        return Launch(rows, max(16, min(512, _power_above(taps))), summed, ranges=2)
    summed = 32
    blocks = g.settings.groups * -(-outputs // rows) * (-(-taps // columns) if needs_weight else 1)
    ranges = max(1, min(_BLOCKS_WANTED // blocks, -(-positions // summed)))
    return Launch(rows, columns, summed, 4, 1, ranges=ranges)


def sum_partials(arch: Architecture, ranges: int, columns: int) -> Launch:
    if arch.interpreted:
        return Launch(_power_above(ranges), min(4096, _power_above(columns)))
    return Launch(64, 32)


def input_grad(g: Geometry, itemsize: int, arch: Architecture) -> Launch:
    s = g.settings
    outputs = g.out_channels // s.groups
    phases = s.pool_stride[0] * s.stride[0] * s.pool_stride[1] * s.stride[1]
    cells = g.batch * -(-g.height // (s.pool_stride[0] * s.stride[0])) * -(-g.width // (s.pool_stride[1] * s.stride[1]))
    columns = _power_above(g.group_channels * phases)
    summed = 1 if outputs == 1 else max(16, min(32, _power_above(outputs)))
    if arch.interpreted:
        return Launch(max(16, min(1024, _power_above(cells))), max(16, min(512, columns)), summed)
    return Launch(64, max(16, min(128, columns)), summed, 4, 1)


def pointwise(arch: Architecture, count: int) -> tuple[int, dict[str, int]]:
    block = min(65536, _power_above(count)) if arch.interpreted else 512
    return block, {"num_warps": 4}


def _forward_direct(g: Geometry, arch: Architecture, y_last: bool) -> Launch:
    outputs = g.out_channels // g.settings.groups
    columns = min(32, _power_above(outputs)) if y_last else 1
    positions = g.batch * g.pooled_height * g.pooled_width
    if arch.interpreted:
        columns = min(64, _power_above(outputs))
        return Launch(max(1, min(2048, _power_above(positions))), columns, inputs=g.group_channels, channels=outputs)
    return Launch(128 if columns == 1 else 32, columns, inputs=g.group_channels, channels=min(outputs, 32))


def _forward_dot(g: Geometry, itemsize: int, arch: Architecture, x_last: bool) -> Launch:
    outputs, inputs = g.out_channels // g.settings.groups, g.group_channels
    window = _power_above(g.window)
    flat = inputs < 16
    summed = max(16, min(32, _power_above(inputs * g.kernel[0] * g.kernel[1] if flat else inputs)))
    columns = max(16, min(64, _power_above(outputs)))
    positions = g.batch * g.pooled_height * g.pooled_width
    if arch.interpreted:
        rows = max(1, 16 // window, min(4096 // window, _power_above(positions)))
        return Launch(rows, columns, max(summed, 64), inputs=inputs if flat else 0)
    rows = max(1, 128 // window)
    return Launch(rows, columns, summed, 8, 3, inputs if flat else 0)


def _fits_registers(g: Geometry) -> bool:
    s = g.settings
    patch = g.group_channels
    for axis in (0, 1):
        step = s.pool_dilation[axis] * s.stride[axis]
        patch *= (s.pool_kernel[axis] - 1) * step + (g.kernel[axis] - 1) * s.dilation[axis] + 1
    return patch <= _PATCH_VALUES and g.window * g.reduction <= _PATCH_PRODUCTS


def _power_above(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
