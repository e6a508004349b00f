"""From tensors to launches: results are allocated, and kernels launched on their device, as `calls` has worked out."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from convpool.geometry import Geometry
from convpool.gpu import calls, split
from convpool.protocol import Needs, check_word
from convpool.torch_private import conv_precision


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str, with_code: bool
) -> tuple[Tensor, Tensor]:
    if plan != "fused":
        check_word(plan)
        return split.forward(x, weight, bias, geometry, with_code, pool)
    dtype, device = x.dtype, x.get_device()
    b_stride = None if bias is None else bias.stride(0)
    with _on_device(device):
        call = calls.forward(
            geometry, dtype, x.stride(), weight.stride(), b_stride, with_code, _takes_tf32(dtype), device
        )
        y = x.new_empty_strided(*call.y)
        code = x.new_empty_strided(*(call.y if with_code else _NOTHING), dtype=torch.uint8)
        if call.launch is not None:
            call.launch(x, weight, weight if bias is None else bias, y, code)
    return y, code


def backward(
    dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: str, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    if plan != "fused":
        check_word(plan)
        dx, dw = split.backward(dy, code, x, weight, geometry, needs, expand)
        *_, db = backward(dy, code, None, weight, geometry, "fused", (False, False, needs[2]))
        return dx, dw, db
    dtype, device = weight.dtype, weight.get_device()
    read = x if needs[1] else None
    x_stride = None if read is None else read.stride()
    with _on_device(device):
        call = calls.backward(
            geometry, dtype, x_stride, weight.stride(), code.stride(), needs, _takes_tf32(dtype), device
        )
        dx, dw, db = (weight.new_empty_strided(*layout) for layout in call.results)
        if call.weight_grad is not None and call.sum_partials is not None:
            partial_sums = weight.new_empty(call.partial_sums[0], dtype=call.partial_sums[1])
            call.weight_grad(dy if read is None else read, dy, code, partial_sums)
            call.sum_partials(partial_sums, dw, db)
        if call.input_grad is not None:
            call.input_grad(dy, code, weight, dx)
    return dx, dw, db


def pool(z: Tensor, bias: Tensor | None, geometry: Geometry, y: Tensor, code: Tensor) -> None:
    """Fill y, and code unless it is empty, from the conv output z: the split plan's epilogue."""
    if y.numel() == 0:
        return
    device, b_stride = z.get_device(), None if bias is None else bias.stride(0)
    with _on_device(device):
        call = calls.pool(geometry, z.dtype, z.stride(), b_stride, y.stride(), code.numel() > 0, device)
        call(z, z if bias is None else bias, y, code)


def expand(dy: Tensor, code: Tensor, geometry: Geometry, dz: Tensor) -> None:
    """Fill dz, zeros included, from dy and the winners: what the split plan hands to the vendor's gradients."""
    if dz.numel() == 0:
        return
    device = dz.get_device()
    with _on_device(device):
        calls.expand(geometry, dz.dtype, code.stride(), dz.stride(), device)(dy, code, dz)


_NOTHING = (0,), (1,)


def _takes_tf32(dtype: torch.dtype) -> bool:
    """Whether products may be rounded to TF32: as torch's convolutions are told."""
    return dtype == torch.float32 and conv_precision() == "tf32"


def _on_device(device: int) -> AbstractContextManager[object]:
    """The guard of a GPU by its index, -1 being the CPU; where it is the current device, there is nothing to guard."""
    return _HERE if device < 0 or device == torch.cuda.current_device() else torch.cuda.device(device)


_HERE = nullcontext()
