"""One model in several forms: on the fused layers, and on torch's own in the ways that somebody would write them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convpool import ConvBNReLUMaxPool2d, ConvReLUMaxPool2d
from convpool.module import conv_arguments
from mnistfast.models.zoo import FUSED_LAYERS

FUSED = "convpool"  # the layers as they come
FUSED_LAST = f"{FUSED}, channels_last"
REPLAYED = ", replayed"  # ends the name of a form whose steps are a recorded graph, not called one by one


def backend_for(device: torch.device) -> str:
    """Returns the backend that the fused layers are measured with: `auto` but on GPUs, which `auto` leaves to torch."""
    return "triton" if device.type == "cuda" else "auto"


class TorchLayers(nn.Conv2d):
    """A fused layer's parameters under torch's own three layers, with no cost of ours around them."""

    def __init__(self, layer: ConvReLUMaxPool2d, *, pool_first: bool) -> None:
        super().__init__(**conv_arguments(layer))
        self.weight, self.bias = layer.weight, layer.bias
        pool = nn.MaxPool2d(
            layer.pool_kernel_size,
            layer.pool_stride,
            layer.pool_padding,
            layer.pool_dilation,
            ceil_mode=layer.ceil_mode,
        )
        self.rest = _relu_and_pool(pool, pool_first=pool_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(super().forward(x))


class TorchNormLayers(nn.Module):
    """The same of a fused layer with a norm: its own conv and norm."""

    def __init__(self, layer: ConvBNReLUMaxPool2d, *, pool_first: bool) -> None:
        super().__init__()
        self.conv, self.norm = layer.conv, layer.norm
        self.rest = _relu_and_pool(layer.pool, pool_first=pool_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.norm(self.conv(x)))


def _relu_and_pool(pool: nn.MaxPool2d, *, pool_first: bool) -> nn.Sequential:
    return nn.Sequential(pool, nn.ReLU()) if pool_first else nn.Sequential(nn.ReLU(), pool)


def _on_torch(model: nn.Module, *, pool_first: bool, channels_last: bool) -> nn.Module:
    model = deepcopy(model)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, FUSED_LAYERS):
            plain: Any = TorchLayers if isinstance(layer, ConvReLUMaxPool2d) else TorchNormLayers
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, plain(layer, pool_first=pool_first))
    return _channels_last(model) if channels_last else model


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


# By name, what makes the form of a model; the original is left as it is. The names: `candidates.PLAIN`.
FORMS: dict[str, Callable[[nn.Module], Any]] = {
    FUSED: deepcopy,
    FUSED_LAST: lambda model: _channels_last(deepcopy(model)),
    "eager": partial(_on_torch, pool_first=False, channels_last=False),
    "eager, channels_last": partial(_on_torch, pool_first=False, channels_last=True),
    "pool before ReLU, channels_last": partial(_on_torch, pool_first=True, channels_last=True),
}
