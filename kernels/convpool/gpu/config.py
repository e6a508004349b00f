"""How each kernel is launched: block sizes, warps and pipeline stages, from the shape and the architecture's limits.

The blocks are those that were fastest on an H200 over the layers of small networks (docs/measurements.md), or, where a
comment says so, by the cost model (benchmarks/gpu_cost_model.py), as far as they spill no registers on any architecture
of the compile gate, but for the exceptions written there.
"""

from dataclasses import dataclass, replace
from functools import cache

from convpool.geometry import Geometry
from convpool.gpu.tiles import Shape, pixels

KIB = 1024


@dataclass(frozen=True)
class Architecture:
    """What the configurations must respect.

    shared_memory: bytes that one block may use.
    multiprocessors: of the whole device; where no device is asked, those of a common one of its kind.
    matrix_unit: Triton has dot products on the matrix unit for it, in float16 and bfloat16.
    tf32: the matrix unit takes float32 as TF32.
    shared_operands: the matrix unit reads its second operand from shared memory, so that many tiles of it, loaded
        ahead, cost a thread no registers. (Blackwell's too, but Triton 3.8 makes nothing of input_grad's loop there.)
    registers: that a thread can name, where the compiler takes a limit of them; else 0. The gradient kernels are given
        it: left to itself ptxas picks 96 or 128 for some, so that more blocks would fit, and spills (19 of the 144
        compiled for sm_90, 100 and 120, up to 88 bytes). Two blocks of 128 threads still share a multiprocessor.
    """

    name: str
    shared_memory: int
    multiprocessors: int
    matrix_unit: bool = True
    tf32: bool = True
    shared_operands: bool = False
    registers: int = 255
    interpreted: bool = False


INTERPRETER = Architecture("interpreter", 1 << 40, 1, matrix_unit=False, tf32=False, registers=0, interpreted=True)

# Shared memory a block may opt in to: CUDA C++ Programming Guide, table of technical specifications; for gfx9 LDS is
# 64 KiB. Multiprocessors: of T4, A100, RTX 3090, Jetson Orin, RTX 4090, H100 SXM, B200, B300, RTX 5090, MI300X.
_CUDA = {
    75: Architecture("sm_75", 64 * KIB, 40, matrix_unit=False, tf32=False),  # Triton has no dot on Turing's matrix unit
    80: Architecture("sm_80", 163 * KIB, 108),
    86: Architecture("sm_86", 99 * KIB, 82),
    87: Architecture("sm_87", 163 * KIB, 16),
    89: Architecture("sm_89", 99 * KIB, 128),
    90: Architecture("sm_90", 227 * KIB, 132, shared_operands=True),
    100: Architecture("sm_100", 227 * KIB, 148),
    103: Architecture("sm_103", 227 * KIB, 160),
    120: Architecture("sm_120", 99 * KIB, 170),
}


@cache
def architecture_of(backend: str, arch: int | str, multiprocessors: int | None = None) -> Architecture:
    """The limits of a Triton target, for an unknown one the smallest of its family; of a device with so many
    multiprocessors."""
    if backend == "cuda":
        capability = int(arch)
        newer = Architecture(f"sm_{capability}", 99 * KIB, 132)
        older = Architecture(f"sm_{capability}", 48 * KIB, 40, matrix_unit=False, tf32=False)
        found = _CUDA.get(capability, newer if capability >= 80 else older)
    else:
        name = str(arch)
        unit = name.startswith("gfx9")
        found = Architecture(name, 64 * KIB, 304 if unit else 60, matrix_unit=unit, tf32=name == "gfx942", registers=0)
    return found if multiprocessors is None else replace(found, multiprocessors=multiprocessors)


@dataclass(frozen=True)
class Launch:
    """One kernel's blocks as those of a matrix product (rows, columns, summed), 0 where a kernel has no such axis.

    kernel: which of the forward kernels, else nothing.
    flat: for forward_dot, whether the products of channels and taps are one axis.
    channels: for forward_direct, the output channels of one program.
    ranges: for weight_grad, into how many ranges the pooled positions are cut.
    apart: for input_grad, of how many phases a program has a tile each, columns being channels then; 0: of none.
    registers: a limit for the compiler, a thread; 0 leaves it to itself.
    """

    rows: int
    columns: int = 0
    summed: int = 0
    warps: int = 4
    stages: int = 1
    kernel: str = ""
    flat: bool = False
    channels: int = 0
    ranges: int = 1
    apart: int = 0
    registers: int = 0

    @property
    def options(self) -> dict[str, int]:
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True, **limit}


_PATCH_VALUES = 80  # forward_direct keeps a patch in registers: beyond this many values a lane it would spill
_PATCH_PRODUCTS = 288  # and unrolls this many multiply-adds a channel at most
FILLS_A_TILE = 16  # channels of a group, for input_grad to keep phases apart
UNROLLED_PRODUCTS = 36  # of tiles in input_grad's loop, where phases are apart; 100 spill
# Programs of weight_grad, where its loads go ahead and where they do not; fixed, so that sums come out alike on every
# device. Four a multiprocessor of 132 hide each other's loads; by the model two are enough where loads are
# asynchronous, and leave half the partial sums (in the H200 sweep 264 took 0.98 even without).
_AHEAD, _NOT_AHEAD = 264, 528
_FEW_COLUMNS = 1024  # of partial sums: too few for a grid of blocks of 32 (model: cnn-1's 4.1 us become 2.4)


def forward(g: Geometry, precision: str, itemsize: int, arch: Architecture, x_last: bool, y_last: bool) -> Launch:
    """Of the kernel that `forward_kernel` names; x_last and y_last: whether channels are innermost in them."""
    kernel = forward_kernel(g, precision, itemsize, arch, x_last)
    if kernel == "forward_direct":
        launch = _forward_direct(g, arch, y_last)
    elif kernel == "forward_patch":
        launch = _forward_patch(g, itemsize, arch)
    else:
        launch = _forward_dot(g, precision, itemsize, arch)
    return replace(launch, kernel=kernel)


def forward_kernel(g: Geometry, precision: str, itemsize: int, arch: Architecture, x_last: bool) -> str:
    """Which kernel computes the forward pass; x_last: whether channels are innermost in x.

    forward_patch needs a matrix unit, and asynchronous copies, which have no 2-byte elements: half precision in NCHW
    stays with forward_dot. To turn x into channels_last for it would gain nothing: cnn-2 in bfloat16 and batch 128
    takes 6.3 us in the cost model, turned 3.0, and turning takes a launch of 1.1 and 2 of memory.
    """
    if _takes_direct(g):
        return "forward_direct"
    units = arch.interpreted or (_on_matrix_unit(precision, itemsize) and (x_last or itemsize == 4))
    return "forward_patch" if units and _takes_patch(g, arch) else "forward_dot"


def weight_grad(g: Geometry, precision: str, itemsize: int, arch: Architecture, needs_weight: bool) -> Launch:
    """rows are output channels, columns (tap, channel), summed the pooled positions of one trip."""
    outputs = g.out_channels // g.settings.groups
    positions = g.batch * g.pooled_height * g.pooled_width
    if arch.interpreted:
        rows = 1 if outputs == 1 else _block(outputs, 256)
        return Launch(rows, _block(g.reduction, 512), _block(positions, 1024), ranges=2)
    on_unit = _on_matrix_unit(precision, itemsize)
    rows = 1 if outputs == 1 else _block(outputs, 64 if on_unit else 32)
    columns, summed, warps, stages = 32, 16, 4, 1
    if on_unit and g.window <= 4:  # larger windows, fewer of whose positions are taken at once, would spill
        if rows < 64:
            summed, warps = 32, 2
        elif itemsize == 2:
            columns, summed, stages = 64, 32, 2
        else:
            stages = 3
    columns = _block(g.reduction, columns)
    blocks = g.settings.groups * -(-outputs // rows) * (-(-g.reduction // columns) if needs_weight else 1)
    wanted = _AHEAD if stages > 1 else _NOT_AHEAD
    ranges = max(1, min(wanted // blocks, -(-positions // summed)))
    return Launch(rows, columns, summed, warps, stages, ranges=ranges, registers=arch.registers)


def sum_partials(arch: Architecture, ranges: int, columns: int) -> Launch:
    """rows are ranges, columns the partial sums' columns; 8 of them are a sector, 32 what a warp reads at once."""
    if arch.interpreted:
        return Launch(_power_above(ranges), min(4096, _power_above(columns)))
    if columns <= _FEW_COLUMNS:
        return Launch(256, 8)
    return Launch(64, 32)  # whatever the ranges: a small last batch, which has fewer, compiles no kernel of its own


def input_grad(g: Geometry, precision: str, itemsize: int, arch: Architecture) -> Launch:
    """rows are cells, columns (phase, channel) or channels, summed the output channels of one trip."""
    s = g.settings
    outputs = g.out_channels // s.groups
    cell_h, cell_w = (a * b for a, b in zip(s.pool_stride, s.stride, strict=True))
    on_unit = _on_matrix_unit(precision, itemsize)
    apart = _phases_apart(g) and (arch.interpreted or (on_unit and arch.shared_operands))
    phases, cells = cell_h * cell_w, g.batch * -(-g.height // cell_h) * -(-g.width // cell_w)
    columns = g.group_channels * (1 if apart else phases)
    if arch.interpreted:
        summed = 1 if outputs == 1 else _block(outputs, 128)
        return Launch(_block(cells, 1024), _block(columns, 512), summed, apart=cell_w if apart else 0)
    if apart:
        rows, columns = 64, _block(columns, 32)
        blocks = s.groups * -(-cells // rows) * -(-g.group_channels // columns)
        # All phases in a program load least; a row of them is a larger grid (model: 12.7 us become 10.2 at 98 blocks).
        together = phases if blocks >= 2 * arch.multiprocessors else cell_w
        return Launch(rows, columns, 16, stages=2, apart=together, registers=arch.registers)
    rows, summed = (64, 32) if on_unit else (32, 16)
    summed = 1 if outputs == 1 else _block(outputs, summed)
    most = 64 if rows == 64 and itemsize == 2 and columns % 64 == 0 else 32
    return Launch(rows, _block(columns, most), summed, registers=arch.registers)


def _phases_apart(g: Geometry) -> bool:
    """Whether input_grad keeps phases apart: channels fill a tile, and few enough products to be unrolled."""
    taps = g.kernel[0] * g.kernel[1]
    return (
        g.group_channels >= FILLS_A_TILE and g.out_channels > g.settings.groups and g.window * taps <= UNROLLED_PRODUCTS
    )


def pointwise(arch: Architecture, count: int) -> Launch:
    """The split plan's kernels: rows are elements, 4 a thread."""
    return Launch(min(65536, _power_above(count)) if arch.interpreted else 512)


def _forward_direct(g: Geometry, arch: Architecture, y_last: bool) -> Launch:
    outputs = g.out_channels // g.settings.groups
    positions = g.batch * g.pooled_height * g.pooled_width
    if arch.interpreted:
        return Launch(min(2048, _power_above(positions)), min(64, _power_above(outputs)), channels=outputs)
    if not y_last:  # neighbours in a warp are positions: contiguous in y, and weights are the same for all
        # Two windows a thread share its loads of weights (0.93 of the time over two layers on an H200). Two large
        # patches leave no registers for weights ahead.
        rows, warps = (64, 1) if g.reduction <= 16 else (128, 4)
        # More channels read the patch less often, but leave multiprocessors idle in small batches: on an H200 lenet-1
        # in batch 128 takes 0.74 of the time with 2, fast-1 0.87 with 4.
        channels, blocks = 8, g.settings.groups * -(-positions // 128)
        while channels > 2 and blocks * -(-outputs // channels) < 4 * arch.multiprocessors:
            channels //= 2
        return Launch(rows, 1, warps=warps, channels=min(outputs, channels))
    columns = min(32, _power_above(outputs))
    values = 4 if g.reduction <= 16 and columns > 1 else 2  # a thread; more would need more registers than it has
    return Launch(max(1, values * 128 // columns), columns, channels=columns)


def _forward_patch(g: Geometry, itemsize: int, arch: Architecture) -> Launch:
    """By the cost model; no GPU has timed it. A trip takes 64 bytes of channels."""
    outputs, inputs = g.out_channels // g.settings.groups, g.group_channels
    positions = g.batch * g.pooled_height * g.pooled_width
    if arch.interpreted:
        return Launch(_block(positions, 1024), _block(outputs, 256), _block(inputs, 256))
    columns, summed = _block(outputs, 64), _block(inputs, 64 // itemsize)
    rows, blocks = 16, g.settings.groups * -(-outputs // columns) * -(-positions // 32)
    # Twice the rows read weights half as often (cnn-2 in batch 1024: 21 us modelled instead of 32), but leave
    # multiprocessors idle in small batches. Narrower tiles of them spill registers, as all do on AMD's units.
    if columns == 64 and blocks >= 2 * arch.multiprocessors and arch.registers:
        rows = 32 if _patch_bytes(g, 32, columns) <= arch.shared_memory else 16
    return Launch(rows, columns, summed, max(1, rows * columns // 256), stages=2)


def _forward_dot(g: Geometry, precision: str, itemsize: int, arch: Architecture) -> Launch:
    outputs, inputs = g.out_channels // g.settings.groups, g.group_channels
    window = _power_above(g.window)
    few = inputs if inputs < 16 else 0  # fewer than a matrix instruction sums: taps are flattened into it
    products = g.reduction if few else inputs
    positions = g.batch * g.pooled_height * g.pooled_width
    if arch.interpreted:
        rows = max(-(-16 // window), min(4096 // window, _power_above(positions)))
        return Launch(rows, _block(outputs, 256), _block(products, 256), flat=few > 0)
    # Without a matrix unit operands go through registers: tiles twice as large spilled 8 to 24 bytes on four targets.
    large = _on_matrix_unit(precision, itemsize)
    rows, columns, summed, warps = (128, 64, 32, 8) if large else (64, 32, 16, 4)
    columns = _block(outputs, columns if window <= 128 else 32)
    launch = Launch(max(1, rows // window), columns, _block(products, summed), warps, flat=few > 0)
    stage = (launch.rows * window + launch.columns) * launch.summed * itemsize
    two_blocks = arch.shared_memory // (2 * stage)  # that share a multiprocessor
    return replace(launch, stages=max(1, min(3, two_blocks)))


def _on_matrix_unit(precision: str, itemsize: int) -> bool:
    """Whether products are made of matrix instructions; without them a tile's operands go through registers one by
    one."""
    return precision == "tf32" or (precision == "ieee" and itemsize == 2)


def _takes_direct(g: Geometry) -> bool:
    """Whether forward_direct computes it, which keeps a patch in registers."""
    s = g.settings
    patch = g.group_channels
    for axis in (0, 1):
        step = s.pool_dilation[axis] * s.stride[axis]
        patch *= (s.pool_kernel[axis] - 1) * step + (g.kernel[axis] - 1) * s.dilation[axis] + 1
    return patch <= _PATCH_VALUES and g.window * g.reduction <= _PATCH_PRODUCTS


def _takes_patch(g: Geometry, arch: Architecture) -> bool:
    """Whether forward_patch gains something, and its unrolled products (81 were compiled in 20 s), accumulators and
    tiles fit."""
    taps = g.kernel[0] * g.kernel[1]
    few = max(taps, g.window) <= 9 and taps * g.window <= 36
    return (
        few
        and g.group_channels >= 16
        and pixels(Shape.of(g)) < taps * g.window
        and _patch_bytes(g, 16, 64) <= arch.shared_memory
    )


def _patch_bytes(g: Geometry, rows: int, columns: int) -> int:
    """Shared memory of a block of forward_patch: 64 bytes of channels of each pixel and tap."""
    return 64 * (pixels(Shape.of(g)) * rows + g.kernel[0] * g.kernel[1] * columns)


def _block(size: int, most: int) -> int:
    """A block for an axis of a matrix product, which takes at least 16."""
    return max(16, min(most, _power_above(size)))


def _power_above(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
