"""From tensors to launches: grids, strides, integer types and precision. Everything a kernel is given is decided
here."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from convpool.geometry import Geometry
from convpool.gpu import config, epilogue, split
from convpool.gpu.config import Architecture
from convpool.gpu.forward import forward_direct, forward_dot
from convpool.gpu.input_grad import input_grad
from convpool.gpu.tiles import Shape, Sizes
from convpool.gpu.weight_grad import sum_partials, weight_grad
from convpool.layout import has_channels_last_strides, new_code, new_gradients, new_output
from convpool.protocol import Needs, check_word


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str, with_code: bool
) -> tuple[Tensor, Tensor]:
    check_word(plan)
    if plan == "split":
        return split.forward(x, weight, bias, geometry, with_code, pool)
    y = new_output(x, weight, geometry)
    code = new_code(y, with_code)
    if y.numel():
        with _on_device_of(x):
            _forward(x, weight, bias, geometry, y, code)
    return y, code


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, y: Tensor, code: Tensor) -> None:
    """Fill y, and code unless it is empty."""
    arch = architecture()
    precision, last = _precision(x.dtype, arch), has_channels_last_strides(y)
    launch = config.forward(geometry, precision, x.dtype.itemsize, arch, last)
    sizes, positions = Sizes.of(geometry), _pooled_positions(geometry)
    parts = triton.cdiv(sizes.outputs, launch.channels or launch.columns)
    common = (
        *(x, weight, weight if bias is None else bias, y, code, sizes, positions, parts),
        *(x.stride(), weight.stride(), 0 if bias is None else bias.stride(0), y.stride(), Shape.of(geometry)),
    )
    flags = {
        "BLOCK_M": launch.rows,
        "BLOCK_O": launch.columns,
        "INSIDE": _reads_inside(geometry),
        "WINDOWS_INSIDE": _windows_inside(geometry),
        "HAS_BIAS": bias is not None,
        "WITH_CODE": code.numel() > 0,
        "ACC": _accumulator(x.dtype),
        "INDEX": _index_type(positions + launch.rows, x, weight, y),
    }
    grid = (geometry.settings.groups * triton.cdiv(positions, launch.rows) * parts,)
    if config.takes_direct(geometry):
        forward_direct[grid](
            *common, INPUTS=geometry.group_channels, CHANNELS=launch.channels, **flags, **launch.options
        )
    else:
        forward_dot[grid](
            *common,
            INPUTS=launch.inputs,
            CHANNELS_INNER=has_channels_last_strides(x),
            BLOCK_K=launch.summed,
            PRECISION=precision,
            **flags,
            **launch.options,
        )


def backward(
    dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: str, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    check_word(plan)
    if plan == "split":
        return split.backward(dy, code, x, weight, geometry, needs, expand)
    dx, dw, db = new_gradients(code, weight, geometry, needs)
    with _on_device_of(weight):
        if needs[1] or needs[2]:
            _weight_grad(dy, code, x if needs[1] and x is not None else dy, weight, geometry, dw, db, needs)
        if needs[0] and dx.numel():
            _input_grad(dy, code, weight, geometry, dx)
    return dx, dw, db


def pool(z: Tensor, bias: Tensor | None, geometry: Geometry, y: Tensor, code: Tensor) -> None:
    """Fill y, and code unless it is empty, from the conv output z: the split plan's epilogue."""
    if y.numel() == 0:
        return
    with _on_device_of(z):
        launch = config.pointwise(architecture(), y.numel())
        epilogue.pool[(triton.cdiv(y.numel(), launch.rows),)](
            *(z, z if bias is None else bias, y, code, _all_channels(geometry), y.numel()),
            *(z.stride(), 0 if bias is None else bias.stride(0), y.stride(), Shape.of(geometry)),
            CHANNELS_LAST=has_channels_last_strides(y),
            BLOCK=launch.rows,
            HAS_BIAS=bias is not None,
            WITH_CODE=code.numel() > 0,
            ACC=_accumulator(z.dtype),
            INDEX=_index_type(y.numel() + launch.rows, z, y),
            **launch.options,
        )


def expand(dy: Tensor, code: Tensor, geometry: Geometry, dz: Tensor) -> None:
    """Fill dz, zeros included, from dy and the winners: what the split plan hands to the vendor's gradients."""
    if dz.numel() == 0:
        return
    with _on_device_of(dz):
        launch = config.pointwise(architecture(), dz.numel())
        epilogue.expand[(triton.cdiv(dz.numel(), launch.rows),)](
            *(dy, code, dz, _all_channels(geometry), dz.numel(), code.stride(), dz.stride(), Shape.of(geometry)),
            CHANNELS_LAST=has_channels_last_strides(dz),
            BLOCK=launch.rows,
            ACC=_accumulator(dz.dtype),
            INDEX=_index_type(dz.numel() + launch.rows, dz, code),
            **launch.options,
        )


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


def _weight_grad(
    dy: Tensor, code: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, dw: Tensor, db: Tensor, needs: Needs
) -> None:
    """Fill dw and db, those needed; x is only read for dw."""
    arch = architecture()
    precision = _precision(weight.dtype, arch)
    launch = config.weight_grad(geometry, precision, weight.dtype.itemsize, arch, needs[1])
    sizes, positions = Sizes.of(geometry), _pooled_positions(geometry)
    range_size = triton.cdiv(triton.cdiv(positions, launch.ranges), launch.summed) * launch.summed
    ranges = max(1, triton.cdiv(positions, max(1, range_size)))
    columns = dw.numel() + db.numel()
    accumulator = _accumulator(weight.dtype)
    partial_sums = torch.empty((ranges, columns), dtype=_TORCH_TYPE[accumulator], device=weight.device)
    blocks = triton.cdiv(sizes.outputs, launch.rows) * geometry.settings.groups * ranges
    if needs[1]:
        blocks *= triton.cdiv(geometry.reduction, launch.columns)
    weight_grad[(blocks,)](
        *(x, dy, code, partial_sums, sizes, positions, x.stride(), code.stride()),
        *(range_size, ranges, columns, geometry.out_channels, Shape.of(geometry)),
        BLOCK_O=launch.rows,
        BLOCK_C=launch.columns,
        BLOCK_M=launch.summed,
        NEEDS_WEIGHT=needs[1],
        NEEDS_BIAS=needs[2],
        INSIDE=_reads_inside(geometry),
        PRECISION=precision,
        ACC=accumulator,
        INDEX=_index_type(max(positions + launch.summed, partial_sums.numel()), x, dy),
        **launch.options,
    )
    second = config.sum_partials(arch, ranges, columns)
    kernel_h, kernel_w = geometry.kernel
    sum_partials[(triton.cdiv(columns, second.columns),)](
        *(partial_sums, dw, db, sizes.inputs, kernel_h * kernel_w, kernel_w),
        *(*(dw.stride() if needs[1] else weight.stride()), ranges, dw.numel(), db.numel()),
        BLOCK_R=second.rows,
        BLOCK=second.columns,
        ACC=accumulator,
        INDEX=_index_type(partial_sums.numel() + second.columns, weight),
        **second.options,
    )


def _input_grad(dy: Tensor, code: Tensor, weight: Tensor, geometry: Geometry, dx: Tensor) -> None:
    arch = architecture()
    precision = _precision(weight.dtype, arch)
    launch = config.input_grad(geometry, precision, weight.dtype.itemsize, arch)
    settings = geometry.settings
    cell_h, cell_w = (a * b for a, b in zip(settings.pool_stride, settings.stride, strict=True))
    cells = geometry.batch * triton.cdiv(geometry.height, cell_h) * triton.cdiv(geometry.width, cell_w)
    sizes = Sizes.of(geometry)
    parts = triton.cdiv(sizes.inputs * (1 if launch.apart else cell_h * cell_w), launch.columns)
    blocks = triton.cdiv(cells, launch.rows)
    input_grad[(geometry.settings.groups * parts * blocks,)](
        *(dy, code, weight, dx, sizes, cells, code.stride(), weight.stride(), dx.stride(), Shape.of(geometry)),
        BLOCK_M=launch.rows,
        BLOCK_C=launch.columns,
        BLOCK_O=launch.summed,
        APART=launch.apart,
        PRECISION=precision,
        ACC=_accumulator(weight.dtype),
        INDEX=_index_type(cells + launch.rows, dx, dy, weight),
        **launch.options,
    )


_TORCH_TYPE = {tl.float32: torch.float32, tl.float64: torch.float64}


def _pooled_positions(g: Geometry) -> int:
    return g.batch * g.pooled_height * g.pooled_width


def _all_channels(g: Geometry) -> Sizes:
    """Sizes for kernels that know no groups."""
    return Sizes.of(g)._replace(outputs=g.out_channels)


def _accumulator(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _precision(dtype: torch.dtype, arch: Architecture) -> str:
    """How dot products treat their operands: as torch's convolutions are told to (in float32 that may mean TF32)."""
    if arch.interpreted or (dtype.itemsize == 2 and not arch.matrix_unit):
        return "upcast"
    allowed = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    if dtype == torch.float32 and arch.tf32 and allowed == "tf32":
        return "tf32"
    return "ieee"


def _index_type(positions: int, *tensors: Tensor) -> tl.dtype:
    """int64 where positions or the offsets in a tensor do not fit an int32."""
    largest = positions
    for t in tensors:
        largest = max(largest, sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)))
    return tl.int64 if largest >= 1 << 31 else tl.int32


def _reads_inside(g: Geometry) -> bool:
    """Whether all taps of all window positions lie in x, so that kernels need not look."""
    return _windows_inside(g) and not any(g.settings.padding)


def _windows_inside(g: Geometry) -> bool:
    """Whether all window positions lie in the conv output."""
    s = g.settings
    for axis, (size, pooled) in enumerate(((g.conv_height, g.pooled_height), (g.conv_width, g.pooled_width))):
        last = (pooled - 1) * s.pool_stride[axis] + (s.pool_kernel[axis] - 1) * s.pool_dilation[axis]
        if s.pool_padding[axis] or last >= size:
            return False
    return True


def _on_device_of(t: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(t.device) if t.device.type == "cuda" else nullcontext()
