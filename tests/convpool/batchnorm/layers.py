"""What these tests share: the backends that serve batch statistics, and our layer beside torch's own."""

import copy
from collections import OrderedDict, defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convpool import ConvBNReLUMaxPool2d, registry

SERVING = [name for name in registry.backend_names() if getattr(registry.backend(name), "batch_statistics", None)]

_FIRST = next(name for name in SERVING if not registry.backend(name).unavailable())

# The others with the slow tests.
by_each_backend = pytest.mark.parametrize(
    "backend",
    [pytest.param(name, marks=[] if name == _FIRST else [pytest.mark.slow]) for name in SERVING],
    indirect=True,
)


def torchs(layer: ConvBNReLUMaxPool2d) -> nn.Sequential:
    """torch's layers with the parameters, buffers and names of ours."""
    conv, norm, pool = copy.deepcopy((layer.conv, layer.norm, layer.pool))
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, relu=nn.ReLU(), pool=pool)).train(layer.training)


def pair(*args: Any, **options: Any) -> tuple[ConvBNReLUMaxPool2d, nn.Sequential]:
    """A layer of these arguments, its norm of either sign, and torch's with the same parameters."""
    torch.manual_seed(0)
    layer = ConvBNReLUMaxPool2d(*args, **options)
    for parameter in layer.norm.parameters():
        nn.init.normal_(parameter)
    return layer, torchs(layer)


def results(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """y, every gradient there is, and the buffers as they are afterwards."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = module(x)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)
    (y * weights).sum().backward()
    grads = {f"gradient of {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "gradient of x": x.grad} | grads | dict(module.named_buffers())


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """To `tolerance` of the largest entry of a layer's gradients or buffers: some of them are 0 but for rounding."""
    assert ours.keys() == theirs.keys()
    scales: dict[str, float] = defaultdict(float)
    for name, expected in theirs.items():
        layer = name.rpartition(".")[0]
        scales[layer] = max([scales[layer], *expected.abs().nan_to_num().flatten().tolist()])
    for name, expected in theirs.items():
        within = tolerance * scales[name.rpartition(".")[0]]
        torch.testing.assert_close(
            ours[name], expected, rtol=0, atol=within, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )
