"""Large networks of torchvision as feature extractors for small images; their conv + ReLU + max-pool runs are fused."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convpool
from mnistfast.errors import DeviceError

NAMES = ("vgg16", "resnet50")
SIDES = (32, 1024)  # of the image they see: both halve it five times


class AsPhotograph(nn.Module):
    """Makes small images what a network trained on photographs expects: larger, in colour, normalised as it was."""

    mean: Tensor
    std: Tensor

    def __init__(self, side: int, mean: list[float], std: list[float]) -> None:
        """Takes the pixels on a side to make of images, and the network's own mean and std of pixels in 0..1."""
        super().__init__()
        self.side = side
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns float (N, 3, side, side) of `images`, pixels in 0..1, float (N, 1 or 3, H, W)."""
        smaller = self.side < images.shape[2]
        images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=smaller)
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"side={self.side}"


def features(name: str, *, channels: int, side: int) -> list[nn.Module]:
    """Returns the layers of the backbone `name` from the image to the global average pool, with random weights.

    They take pixels in 0..1, float (N, channels, H, W), and give (N, C, 1, 1).

    Raises:
        DeviceError: torchvision is not installed.
        ValueError: a number of channels or a side that it cannot take.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}: {name} takes 1 or 3")
    if not SIDES[0] <= side <= SIDES[1]:
        raise ValueError(f"side is {side}: {name} takes {SIDES[0]} to {SIDES[1]}")
    normalisation = published_weights(name).transforms()
    adapter = AsPhotograph(side, normalisation.mean, normalisation.std)
    return [adapter, convpool.fuse(_MAKE[name](), inplace=True), nn.AdaptiveAvgPool2d(1)]


def published_weights(name: str) -> Any:
    """Returns torchvision's entry for the weights of `name`: `url`, `transforms()`. Raises DeviceError."""
    try:
        from torchvision.models import get_model_weights
    except ImportError as error:
        raise DeviceError(f"{name} needs torchvision", str(error), "pip install 'mnistfast[transfer]'") from error
    return get_model_weights(name).DEFAULT


def trunk_weights(name: str, file: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the entries of torchvision's state dict `file` that belong to what `features` takes of the network."""
    prefix = _PREFIX[name]
    return {key.removeprefix(prefix): tensor for key, tensor in file.items() if key.startswith(prefix)}


def _vgg16() -> nn.Module:
    """VGG16's convolutions (Simonyan and Zisserman 2015, configuration D), initialised as torchvision does it."""
    from torchvision.models.vgg import cfgs, make_layers

    layers = make_layers(cfgs["D"])  # vgg16() would draw its classifier's 120 million weights too
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return layers


def _resnet50() -> nn.Module:
    """ResNet-50 (He et al. 2016) without its pool and its classifier."""
    from torchvision.models import resnet50

    trunk = nn.Sequential()
    for name, layer in resnet50(weights=None).named_children():
        if name not in ("avgpool", "fc"):
            trunk.add_module(name, layer)
    return trunk


_MAKE = {"vgg16": _vgg16, "resnet50": _resnet50}
_PREFIX = {"vgg16": "features.", "resnet50": ""}
