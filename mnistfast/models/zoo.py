"""The named models: small CNNs whose conv + ReLU + max-pool triples are one fused layer each."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from convpool import ConvReLUMaxPool2d
from mnistfast.errors import CheckpointError, DataError, nearest
from mnistfast.models.dropout import BatchDropout

GREY = (1, 28, 28)
COLOUR = (3, 32, 32)


class Crop(nn.Module):
    """Leaves out the `margin` outer rows and columns on each side of images (N, C, H, W); a view."""

    def __init__(self, margin: int) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, images: Tensor) -> Tensor:
        return images[..., self.margin : -self.margin, self.margin : -self.margin]

    def extra_repr(self) -> str:
        return str(self.margin)


class FlattenChannelsLast(nn.Module):
    """(N, C, H, W) to (N, H * W * C): of a channels_last tensor a view, where nn.Flatten would have to copy."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class Classifier(nn.Module):
    """Convolutions (`features`), then fully connected layers (`head`); logits come out.

    Attributes:
        name: the model's name in `MODELS`.
        arguments: what `build` was called with besides the name; both together build the model again.
        input_size: (C, H, W) of one image.
        classes: number of logits.
    """

    def __init__(
        self,
        name: str,
        input_size: tuple[int, int, int],
        features: list[nn.Module],
        hidden: list[int],
        *,
        classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.name, self.input_size, self.classes = name, input_size, classes
        self.arguments: dict[str, Any] = {"classes": classes, "dropout": dropout}
        self.features = nn.Sequential(*features)
        with torch.no_grad():
            width = prod(self.features(torch.zeros(1, *input_size)).shape)
        layers: list[nn.Module] = []
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        if dropout:  # before the last layer only: the usual place, and it adds no parameter
            layers.append(BatchDropout(dropout))
        self.head = nn.Sequential(*layers, nn.Linear(width, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, classes) of `images` float32 (N, C, H, W), normalised."""
        return self.head(self.features(images).flatten(1))


def _cnn1(**kwargs: Any) -> Classifier:
    return Classifier("cnn1", GREY, [ConvReLUMaxPool2d(1, 32, 3)], [128], **kwargs)


def _cnn2(**kwargs: Any) -> Classifier:
    return Classifier("cnn2", GREY, [ConvReLUMaxPool2d(1, 32, 3), ConvReLUMaxPool2d(32, 64, 3)], [128], **kwargs)


def _lenet5(**kwargs: Any) -> Classifier:
    """LeNet-5 with ReLU and max-pooling in place of tanh and sub-sampling (LeCun et al. 1998, figure 2, modernised)."""
    features: list[nn.Module] = [ConvReLUMaxPool2d(1, 6, 5, padding=2), ConvReLUMaxPool2d(6, 16, 5)]
    return Classifier("lenet5", GREY, features, [120, 84], **kwargs)


def _cifar_cnn(**kwargs: Any) -> Classifier:
    features: list[nn.Module] = [ConvReLUMaxPool2d(3, 32, 3), ConvReLUMaxPool2d(32, 64, 3)]
    features += [nn.Conv2d(64, 64, 3), nn.ReLU()]  # no pool follows: nothing to fuse
    return Classifier("cifar-cnn", COLOUR, features, [64], **kwargs)


def _fast(**kwargs: Any) -> Classifier:
    return Classifier("fast", GREY, [ConvReLUMaxPool2d(1, 24, 5), ConvReLUMaxPool2d(24, 32, 3)], [256], **kwargs)


def _speedrun(**kwargs: Any) -> Classifier:
    """What reaches 99 % on MNIST soonest: docs/speedrun.md. Its widths are multiples of a vector's 16 lanes."""
    features: list[nn.Module] = [Crop(2), ConvReLUMaxPool2d(1, 16, 5), ConvReLUMaxPool2d(16, 64, 3)]
    model = Classifier("speedrun", GREY, [*features, FlattenChannelsLast()], [], **kwargs)
    return model.to(memory_format=torch.channels_last)  # the kernels' own: saves a transposition on each side


MODELS: dict[str, Callable[..., Classifier]] = {
    "cnn1": _cnn1,
    "cnn2": _cnn2,
    "lenet5": _lenet5,
    "cifar-cnn": _cifar_cnn,
    "fast": _fast,
    "speedrun": _speedrun,
}


def build(name: str, *, classes: int = 10, dropout: float = 0.0) -> Classifier:
    """Returns the model called `name` with freshly drawn weights (torch's global generator, torch's initialisation).

    Raises:
        CheckpointError: there is no model of that name (a checkpoint of a later version may ask for one).
    """
    if name not in MODELS:
        raise CheckpointError(f"unknown model {name!r}{nearest(name, MODELS)}", f"The models are {', '.join(MODELS)}")
    return MODELS[name](classes=classes, dropout=dropout)


def check_images(model: Classifier, size: tuple[int, ...], source: str) -> None:
    """Refuses images (C, H, W) that `model` does not take.

    Raises:
        DataError: `size` is not the model's input size.
    """
    if tuple(size) != model.input_size:
        fitting = [name for name, make in MODELS.items() if make(classes=2, dropout=0.0).input_size == tuple(size)]
        raise DataError(
            f"the images of {source} are {_text(size)}, model {model.name} takes {_text(model.input_size)}",
            fix=" or ".join([_fitting_options(model, size), *([f"--model {' or '.join(fitting)}"] if fitting else [])]),
        )


def _fitting_options(model: Classifier, size: tuple[int, ...]) -> str:
    """Returns the options that make images of `size` what `model` takes, or says what to look for."""
    if size[0] < model.input_size[0]:
        return "a data set in colour"
    gray = " --gray" if size[0] > model.input_size[0] else ""
    return f"--resize {model.input_size[1]}{gray}" if size[1:] != model.input_size[1:] else gray.strip()


def _text(size: tuple[int, ...]) -> str:
    channels, height, width = size
    return f"{height}x{width}x{channels}"
