"""From tensors to launches: results are allocated, and kernels launched on their device, as was worked out."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from convpool.geometry import Geometry
from convpool.gpu import backward_calls, forward_calls, split
from convpool.layout import Strides, new_code
from convpool.protocol import Needs, check_word
from convpool.torch_private import conv_precision


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str, with_code: bool
) -> tuple[Tensor, Tensor]:
    return bind(x, weight, bias, geometry, plan).forward(x, weight, bias, with_code)


def forward_kernel(x: Tensor, weight: Tensor, geometry: Geometry) -> str | None:
    """The kernel that the fused plan's forward pass launches; None where there is nothing to compute."""
    tf32 = x.dtype == torch.float32 and conv_precision() == "tf32"
    device = x.get_device()
    with on_device(device):
        call = forward_calls.forward(geometry, x.dtype, x.stride(), weight.stride(), None, False, tf32, device)
    return call.launch.name if call.launch else None


def backward(
    dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: str, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    check_word(plan)
    x_stride = () if x is None else x.stride()
    fused = Fused(geometry, weight.dtype, x_stride, weight.stride(), None, weight.get_device())
    return (fused if plan == "fused" else Split(fused)).backward(dy, code, x, weight, needs)


def bind(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str) -> "Fused | Split":
    """What computes calls on tensors that differ from these in nothing but their numbers."""
    check_word(plan)
    b_stride = None if bias is None else bias.stride(0)
    fused = Fused(geometry, x.dtype, x.stride(), weight.stride(), b_stride, x.get_device())
    return fused if plan == "fused" else Split(fused)


class Fused:
    """The fused plan for tensors of one geometry, dtype, device and these strides; x may have none if none is read."""

    def __init__(
        self,
        geometry: Geometry,
        dtype: torch.dtype,
        x_stride: Strides,
        w_stride: Strides,
        b_stride: int | None,
        device: int,
    ) -> None:
        self.geometry = geometry
        self._kind = geometry, dtype, x_stride, w_stride
        self._b_stride, self._device = b_stride, device
        self._outputs, self._is_float32 = geometry.out_channels, dtype == torch.float32
        self._forward: dict[tuple[bool, bool], forward_calls.Forward] = {}
        self._backward: dict[tuple[Needs, bool], backward_calls.Backward] = {}
        self._unneeded: dict[int, Tensor] = {}

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, with_code: bool) -> tuple[Tensor, Tensor]:
        if not is_current(self._device):
            with torch.cuda.device(self._device):
                return self.forward(x, weight, bias, with_code)
        key = with_code, self._is_float32 and conv_precision() == "tf32"
        call = self._forward.get(key)
        if call is None:
            call = forward_calls.forward(*self._kind, self._b_stride, *key, self._device)
            self._forward[key] = call
        y = x.new_empty_strided(*call.y)
        code = torch.empty_like(y, dtype=torch.uint8) if with_code else new_code(y, False)
        if call.launch is not None:
            call.launch(x, weight, weight if bias is None else bias, y, code)
        return y, code

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All backward passes of one object have dy and code of the same strides."""
        if not is_current(self._device):
            with torch.cuda.device(self._device):
                return self.backward(dy, code, x, weight, needs)
        key = needs, self._is_float32 and conv_precision() == "tf32"
        call = self._backward.get(key)
        if call is None:
            call = backward_calls.backward(*self._kind, code.stride(), *key, self._device)
            self._backward[key] = call
        dx = weight.new_empty_strided(*call.dx) if needs[0] else self._nothing(weight, 0)
        dw = torch.empty_like(weight) if needs[1] else self._nothing(weight, 1)
        db = weight.new_empty(self._outputs) if needs[2] else self._nothing(weight, 2)
        if call.weight_grad is not None and call.sum_partials is not None:
            partial_sums = weight.new_empty_strided(*call.partial_sums, dtype=call.accumulator)
            call.weight_grad(x if needs[1] and x is not None else dy, dy, code, partial_sums)
            call.sum_partials(partial_sums, dw, db)
        if call.input_grad is not None:
            call.input_grad(dy, code, weight, dx)
        return dx, dw, db

    def _nothing(self, like: Tensor, which: int) -> Tensor:
        """A gradient that is not needed: always the same tensor."""
        if which not in self._unneeded:
            self._unneeded[which] = like.new_empty(0)
        return self._unneeded[which]


class Split:
    """The split plan for tensors like those of a fused one, whose kernels sum db."""

    def __init__(self, fused: Fused) -> None:
        self._fused = fused

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, with_code: bool) -> tuple[Tensor, Tensor]:
        return split.forward(x, weight, bias, self._fused.geometry, with_code, pool)

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        dx, dw = split.backward(dy, code, x, weight, self._fused.geometry, needs, expand)
        *_, db = self._fused.backward(dy, code, None, weight, (False, False, needs[2]))
        return dx, dw, db


def pool(z: Tensor, bias: Tensor | None, geometry: Geometry, y: Tensor, code: Tensor) -> None:
    """Fill y, and code unless it is empty, from the conv output z: the split plan's epilogue."""
    if y.numel() == 0:
        return
    device, b_stride = z.get_device(), None if bias is None else bias.stride(0)
    with on_device(device):
        call = forward_calls.pool(geometry, z.dtype, z.stride(), b_stride, y.stride(), code.numel() > 0, device)
        call(z, z if bias is None else bias, y, code)


def expand(dy: Tensor, code: Tensor, geometry: Geometry, dz: Tensor) -> None:
    """Fill dz, zeros included, from dy and the winners: what the split plan hands to the vendor's gradients."""
    if dz.numel() == 0:
        return
    device = dz.get_device()
    with on_device(device):
        backward_calls.expand(geometry, dz.dtype, code.stride(), dz.stride(), device)(dy, code, dz)


def is_current(device: int) -> bool:
    """Whether launches go to this GPU, by its index; -1 is the CPU, where Triton interprets."""
    return device < 0 or device == torch.cuda.current_device()


def on_device(device: int) -> AbstractContextManager[object]:
    """A guard: inside, the GPU is the current one."""
    return nullcontext() if is_current(device) else torch.cuda.device(device)
