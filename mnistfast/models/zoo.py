"""The named models: small CNNs whose conv + ReLU + max-pool triples are one fused layer each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from convpool import ConvBNReLUMaxPool2d, ConvReLUMaxPool2d
from mnistfast.errors import CheckpointError, DataError, nearest
from mnistfast.models import backbones
from mnistfast.models.dropout import BatchDropout

GREY = (1, 28, 28)
COLOUR = (3, 32, 32)
FUSED_LAYERS = (ConvReLUMaxPool2d, ConvBNReLUMaxPool2d)


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

    All but the last layer (of a backbone: what torchvision has made) is the body, whose output is an embedding of the
    image. A model that was fine-tuned for other classes keeps the last layers of its earlier tasks beside the present
    one.

    Attributes:
        name: the model's name in `MODELS` or `BACKBONES`.
        arguments: what `build` was called with besides the name; both together build the model again.
        input_size: (C, H, W) of one image.
        classes: number of logits.
        old_heads: the last layers of earlier tasks, the latest one first.
        cut: how many layers of `head` belong to the body.
        scoring_batch: images a step when nothing is learnt: more gains nothing on CPUs, and fits any GPU.
    """

    scoring_batch = 1000

    def __init__(
        self,
        name: str,
        input_size: tuple[int, int, int],
        features: list[nn.Module],
        hidden: list[int],
        *,
        classes: int,
        dropout: float,
        old_classes: Sequence[int] = (),
    ) -> None:
        """Builds the layers; `old_classes` are the logits of each old head."""
        super().__init__()
        self.name, self.input_size = name, input_size
        self.arguments: dict[str, Any] = {"classes": classes, "dropout": dropout}
        if isinstance(features[-1], FUSED_LAYERS):  # its kernels write either format; flattening one would copy it
            features[-1].contiguous_output = True
        self.features = nn.Sequential(*features)
        with torch.no_grad():  # in eval mode: a norm could not take one image, and must not learn from it
            width = prod(self.features.eval()(torch.zeros(1, *input_size)).shape)
        self.features.train()
        layers: list[nn.Module] = []
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        self.cut = len(layers)
        if dropout:  # before the last layer only: the usual place, and it adds no parameter
            layers.append(BatchDropout(dropout))
        self.head = nn.Sequential(*layers, nn.Linear(width, classes))
        self.old_heads = nn.ModuleList(nn.Linear(width, count) for count in old_classes)
        self._note_heads()

    def _note_heads(self) -> None:
        self.classes = self.arguments["classes"] = self.last.out_features
        self.arguments.pop("old_classes", None)
        if self.old_heads:  # only then: the headers of other models need not say that there are none
            self.arguments["old_classes"] = [head.out_features for head in self.old_heads]

    @property
    def last(self) -> nn.Linear:
        """The layer that the logits come from."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, x: Tensor, head: int = 0) -> Tensor:
        """Returns logits (N, classes).

        Args:
            x: images float32 (N, C, H, W), normalised, or their embeddings float32 (N, width).
            head: 0 is the present task's, k the k-th of `old_heads`.
        """
        x = self.embed(x) if x.dim() == 4 else x
        for layer in list(self.head)[self.cut : -1]:
            x = layer(x)
        return self.old_heads[head - 1](x) if head else self.last(x)

    def embed(self, images: Tensor) -> Tensor:
        """Returns the embeddings (N, width) of `images` float32 (N, C, H, W): what the body makes of them."""
        x = self.features(images).flatten(1)
        for layer in list(self.head)[: self.cut]:
            x = layer(x)
        return x

    def add_head(self, classes: int) -> None:
        """Gives the model a new last layer with freshly drawn weights; the present one becomes the first old head."""
        old = self.last
        self.old_heads = nn.ModuleList([old, *self.old_heads])
        self.head[-1] = nn.Linear(old.in_features, classes, device=old.weight.device)
        self._note_heads()

    def drop_old_heads(self) -> None:
        """Leaves one head."""
        self.old_heads = nn.ModuleList()
        self._note_heads()

    def use_head(self, head: int) -> None:
        """Makes the `head`-th of `old_heads`, counted from 1, the only head."""
        self.head[-1] = self.old_heads[head - 1]
        self.drop_old_heads()


def _cnn1(**kwargs: Any) -> Classifier:
    return Classifier("cnn1", GREY, [ConvReLUMaxPool2d(1, 32, 3)], [128], **kwargs)


def _cnn2(**kwargs: Any) -> Classifier:
    return Classifier("cnn2", GREY, [ConvReLUMaxPool2d(1, 32, 3), ConvReLUMaxPool2d(32, 64, 3)], [128], **kwargs)


def _cnn2_bn(**kwargs: Any) -> Classifier:
    """cnn2 with a norm in its usual place, between convolution and ReLU."""
    features: list[nn.Module] = [ConvBNReLUMaxPool2d(1, 32, 3), ConvBNReLUMaxPool2d(32, 64, 3)]
    return Classifier("cnn2-bn", GREY, features, [128], **kwargs)


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


def _accurate(**kwargs: Any) -> Classifier:
    """Three fused layers that keep the size before their pools (28, 14, 7, 3 pixels), a plain one before the second.

    A fused layer is normalised after its pool: there a norm sees a quarter of what it would before, and no array of the
    conv output's size comes into being. After the plain one a norm took a tenth of a step and saved no errors.
    """
    features: list[nn.Module] = [ConvReLUMaxPool2d(1, 32, 5, padding=2), nn.BatchNorm2d(32)]
    features += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]  # no pool follows: nothing to fuse
    features += [ConvReLUMaxPool2d(64, 64, 3, padding=1), nn.BatchNorm2d(64)]
    features += [ConvReLUMaxPool2d(64, 128, 3, padding=1), nn.BatchNorm2d(128)]
    return Classifier("accurate", GREY, features, [], **kwargs)


def _speedrun(**kwargs: Any) -> Classifier:
    """What reaches 99 % on MNIST soonest: docs/speedrun.md. Its widths are multiples of a vector's 16 lanes."""
    features: list[nn.Module] = [Crop(2), ConvReLUMaxPool2d(1, 16, 5), ConvReLUMaxPool2d(16, 64, 3)]
    model = Classifier("speedrun", GREY, [*features, FlattenChannelsLast()], [], **kwargs)
    return model.to(memory_format=torch.channels_last)  # the kernels' own: saves a transposition on each side


MODELS: dict[str, Callable[..., Classifier]] = {
    "cnn1": _cnn1,
    "cnn2": _cnn2,
    "cnn2-bn": _cnn2_bn,
    "lenet5": _lenet5,
    "cifar-cnn": _cifar_cnn,
    "fast": _fast,
    "accurate": _accurate,
    "speedrun": _speedrun,
}


def _backbone(
    name: str, *, size: Sequence[int] = GREY, side: int = 64, hidden: Sequence[int] = (), **kwargs: Any
) -> Classifier:
    """A large network, its global average pool, and a head: [hidden ->] classes.

    Args:
        name: of `backbones.NAMES`.
        size: (C, H, W) of the images, C 1 or 3, pixels in 0..1.
        side: pixels that they are made wide and high for the network.
        hidden: units of fully connected layers before the last one.
        kwargs: of `Classifier`.

    Raises:
        DeviceError: torchvision is not installed.
        ValueError: a size or side that the network cannot take.
    """
    if len(size) != 3 or max(size) > backbones.SIDES[1]:
        raise ValueError(f"size is {size}: three numbers up to {backbones.SIDES[1]} are needed")
    features = backbones.features(name, channels=size[0], side=side)
    model = Classifier(name, tuple(size), features, list(hidden), **kwargs)  # type: ignore[arg-type]
    model.arguments |= {"size": list(size), "side": side, "hidden": list(hidden)}
    model.cut = 0
    model.scoring_batch = 100  # VGG16's first layers keep 2 MiB of an image of 64 pixels, 26 of one of 224
    return model


BACKBONES: dict[str, Callable[..., Classifier]] = {name: partial(_backbone, name) for name in backbones.NAMES}


def build(name: str, *, classes: int = 10, dropout: float = 0.0, **arguments: Any) -> Classifier:
    """Returns the model called `name` with freshly drawn weights (torch's global generator, torch's initialisation).

    Args:
        name: of `MODELS` or `BACKBONES`.
        classes: number of logits.
        dropout: share of the embedding that is dropped in training.
        arguments: `old_classes`, the logits of each old head; for a backbone those of its own function.

    Raises:
        CheckpointError: there is no model of that name (a checkpoint of a later version may ask for one).
        DeviceError: the package that has the backbones is not installed.
        TypeError, ValueError: `arguments` that the model does not take.
    """
    known = MODELS | BACKBONES
    if name not in known:
        raise CheckpointError(f"unknown model {name!r}{nearest(name, known)}", f"The models are {', '.join(known)}")
    return known[name](classes=classes, dropout=dropout, **arguments)


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
