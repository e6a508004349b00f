"""float32 errors on pictures that are hard on a variance, next to those of torch's float32 layers.

The variance of a conv output is w . S w / M, with S of x alone. Where pictures are smooth and filters take the smooth
part away, or where pictures are nearly constant, that is little left of much, and float32 sums would not hold it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convpool import conv_bn_relu_max_pool2d, eager
from convpool.batchnorm.eager import bn_relu_max_pool
from convpool.geometry import make_settings
from tests.convpool.batchnorm.oracle import Layer, double, on_backends, run

EPS = 1e-5
FEW_BITS = 4 * torch.finfo(torch.float32).eps
IMAGES, SIZE, OUTPUTS = 4, 24, 24
FORMATS = (torch.contiguous_format, torch.channels_last)
LAPLACE = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
SADDLE = torch.tensor([[1.0, 0, -1], [0, 0, 0], [-1, 0, 1]])

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Scene:
    """pictures: of so many channels. highpass: filters that answer 0 to a constant and to a slope."""

    channels: int
    pictures: Callable[[int], Tensor]
    highpass: bool = False
    ordinary: bool = False  # what networks see: errors are torch's

    def weight(self) -> Tensor:
        if self.highpass:
            a, b = torch.randn(2, OUTPUTS, self.channels, 1, 1)
            return a * LAPLACE + b * SADDLE
        return torch.randn(OUTPUTS, self.channels, 3, 3) / (9 * self.channels) ** 0.5


def white(channels: int) -> Tensor:
    return torch.randn(IMAGES, channels, SIZE, SIZE)


def smooth(channels: int) -> Tensor:
    """Noise without what is smaller than some nine pixels; mean 0, standard deviation 1."""
    noise = torch.randn(IMAGES, channels, SIZE + 16, SIZE + 16)
    blurred = F.avg_pool2d(F.avg_pool2d(noise, 9, stride=1), 9, stride=1)
    return (blurred - blurred.mean()) / blurred.std()


SCENES = {
    "white": Scene(16, white, ordinary=True),
    "smooth": Scene(3, smooth, ordinary=True),
    "smooth, high-pass": Scene(3, smooth, highpass=True),
    "pixels": Scene(3, lambda c: (128 + 40 * smooth(c)).clamp(0, 255), ordinary=True),
    "pixels, high-pass": Scene(3, lambda c: (128 + 40 * smooth(c)).clamp(0, 255), highpass=True),
    "after ReLU": Scene(16, lambda c: white(c).relu(), ordinary=True),
    "after ReLU and 3 more, smooth, high-pass": Scene(16, lambda c: smooth(c).relu() + 3, highpass=True),
    "nearly constant": Scene(3, lambda c: 100 + 0.01 * white(c)),
    "nearly constant, smooth, high-pass": Scene(3, lambda c: 100 + 0.01 * smooth(c), highpass=True),
}


def decided(tensors: dict[str, Tensor], margin: float, padding: int) -> Tensor:
    """The windows of 2x2 whose winner no error of that size in a normalised value can change."""
    z = eager.conv(tensors["x"], tensors["weight"], None, make_settings((3, 3), padding=padding))
    values = F.batch_norm(z, None, None, tensors["gamma"], tensors["beta"], True, 0.0, EPS)
    best, second = values.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).topk(2).values.unbind(-1)
    return (best - second > margin) & (best.abs() > margin)


def worst(layer: Layer, tensors: dict[str, Tensor], dy: Tensor, exact: dict[str, Tensor]) -> dict[str, float]:
    """The largest errors, in either format: of the mean in standard deviations, of the variance relative to itself, of
    y as it is, of gradients relative to the largest."""
    scale = {name: expected.abs().max() for name, expected in exact.items()}
    scale |= {"y": torch.ones(()), "running_mean": exact["running_var"].sqrt(), "running_var": exact["running_var"]}
    found: dict[str, float] = {}
    for layout in FORMATS:
        pictures = {name: t.contiguous(memory_format=layout) if t.dim() == 4 else t for name, t in tensors.items()}
        for name, got in run(layer, pictures, dy, momentum=1.0, eps=EPS).items():
            assert got.isfinite().all(), name
            off = ((got.double() - exact[name]).abs() / scale[name]).max().item()
            found[name] = max(found.get(name, 0.0), off)
    return found


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("name", SCENES)
@on_backends(torch.float32)
def test_errors_next_to_torchs(name: str, padding: int, backend: str) -> None:
    scene = SCENES[name]
    torch.manual_seed(1)
    tensors = {
        "x": scene.pictures(scene.channels),
        "weight": scene.weight(),
        "gamma": torch.rand(OUTPUTS) + 0.5,
        "beta": torch.randn(OUTPUTS) * 0.2,
    }
    ours = partial(conv_bn_relu_max_pool2d, training=True, padding=padding)
    torchs = partial(bn_relu_max_pool, settings=make_settings((3, 3), padding=padding))

    def errors(dy: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        exact = run(torchs, double(tensors), dy, momentum=1.0, eps=EPS)
        return worst(ours, tensors, dy, exact), worst(torchs, tensors, dy, exact)

    dy = torch.randn(IMAGES, OUTPUTS, *[(SIZE + 2 * padding - 2) // 2] * 2)
    values = [found["y"] for found in errors(dy)]
    sure = decided(double(tensors), 4 * max(values), padding)
    assert sure.double().mean() > 0.01
    found, theirs = errors(dy * sure)
    for result, off in found.items():
        if scene.ordinary:
            allowed = max(2 * theirs[result], FEW_BITS)
        else:
            allowed = max(10 * theirs[result], 4e-5) if result == "dgamma" else max(4 * theirs[result], 1e-5)
        assert off <= allowed, f"{result}: {off:.2g}, torch {theirs[result]:.2g}"
