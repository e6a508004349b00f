"""What kernels are compiled for, beside their blocks: a device's limits, precision, integer types, what lies inside."""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from convpool.geometry import Geometry
from convpool.gpu import config
from convpool.gpu.config import Architecture
from convpool.gpu.tiles import Sizes
from convpool.layout import Layout


def architecture() -> Architecture:
    """The limits of the current device, which launches go to: call it under the device guard."""
    if triton.knobs.runtime.interpret:
        return config.INTERPRETER
    driver = triton.runtime.driver.active
    return _architecture_of(driver, driver.get_current_device())


@cache
def _architecture_of(driver: Any, device: int | str) -> Architecture:
    target = driver.get_current_target()
    count = None  # of a stand-in for a driver, which has no devices
    if hasattr(driver, "utils"):
        count = driver.utils.get_device_properties(device)["multiprocessor_count"]
    return config.architecture_of(target.backend, target.arch, count)


def of_full_batch(g: Geometry, arch: Architecture) -> Geometry:
    """What a training step's blocks are chosen for: an epoch's last, smaller batch takes those of a full one, so that
    no kernels are compiled for it alone. Where nothing is compiled, in the interpreter, they fit the batch."""
    return g if arch.interpreted else g._replace(batch=max(g.batch, _FULL_BATCH))


_FULL_BATCH = 128


def pooled_positions(g: Geometry) -> int:
    return g.batch * g.pooled_height * g.pooled_width


def elements_of(shape: tuple[int, int, int, int]) -> int:
    n, c, h, w = shape
    return n * c * h * w


def all_channels(g: Geometry) -> Sizes:
    """Sizes for kernels that know no groups."""
    return Sizes.of(g)._replace(outputs=g.out_channels)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def precision_of(dtype: torch.dtype, tf32: bool, arch: Architecture) -> str:
    """How dot products treat their operands."""
    if arch.interpreted or (dtype.itemsize == 2 and not arch.matrix_unit):
        return "upcast"
    return "tf32" if tf32 and arch.tf32 else "ieee"


def index_type(positions: int, *layouts: Layout) -> tl.dtype:
    """int64 where positions or the offsets in a tensor do not fit an int32."""
    largest = positions
    for sizes, strides in layouts:
        largest = max(largest, sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)))
    return tl.int64 if largest >= 1 << 31 else tl.int32


def reads_inside(g: Geometry) -> bool:
    """Whether all taps of all window positions lie in x, so that kernels need not look."""
    return windows_inside(g) and not any(g.settings.padding)


def windows_inside(g: Geometry) -> bool:
    """Whether all window positions lie in the conv output."""
    s = g.settings
    for axis, (size, pooled) in enumerate(((g.conv_height, g.pooled_height), (g.conv_width, g.pooled_width))):
        last = (pooled - 1) * s.pool_stride[axis] + (s.pool_kernel[axis] - 1) * s.pool_dilation[axis]
        if s.pool_padding[axis] or last >= size:
            return False
    return True
