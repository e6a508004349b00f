"""The calls of the op that a model makes: recorded without their numbers, and made again with others."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convpool import planning
from convpool.batchnorm import ConvBNReLUMaxPool2d
from convpool.choices import key
from convpool.functional import conv_relu_max_pool2d, prepare
from convpool.fusion import fuse
from convpool.fusion.rewrite import is_fused
from convpool.geometry import Geometry
from convpool.module import ConvReLUMaxPool2d
from convpool.protocol import Plan, Use
from convpool.testing import Inputs


@dataclass(frozen=True)
class Recorded:
    """A call on batched tensors, in the types that the op computes in.

    Attributes:
        x, weight, bias: of these sizes, strides and types; without numbers.
        plan: what `auto` does with it.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    device: torch.device
    geometry: Geometry
    use: Use
    plan: str

    @property
    def key(self) -> str:
        return key(self.geometry, self.x.dtype, self.device, self.use)

    def plans(self) -> list[Plan]:
        """All by which it can be computed."""
        return list(planning.plans(self.geometry, self.x.dtype, self.device, self.use))

    def inputs(self, images: int | None = None) -> Inputs:
        """Random numbers in its tensors' place, standard normal, weights scaled to keep the conv output near 1.

        Args:
            images: at most so many of the batch.
        """
        g = self.geometry
        generator = torch.Generator(self.device).manual_seed(0)

        def draw(t: Tensor, scale: float = 1.0) -> Tensor:
            return torch.empty_like(t, device=self.device).normal_(generator=generator).mul_(scale)

        x = self.x[:images]
        dy = x.new_empty((len(x), *g.output_shape[1:]))
        bias = None if self.bias is None else draw(self.bias, 0.5)
        return Inputs(draw(x), draw(self.weight, max(1, g.reduction) ** -0.5), bias, draw(dy), g.settings)

    @property
    def products(self) -> int:
        """Those of one image's convolution."""
        g = self.geometry
        return g.reduction * g.out_channels * g.conv_height * g.conv_width


def recorded(model: nn.Module, example: tuple[Any, ...], requested: str) -> dict[str, Recorded]:
    """The calls that a model makes for an example in its present mode, by their keys: of equal ones the first.

    They are those of a copy, fused if neither the model nor a layer of it is, and no random number is drawn from the
    generators in use. Calls that the model lets a named backend compute are not among them.

    Args:
        requested: "auto" or "auto-replayed".
    """
    copy = deepcopy(model)
    if not any(is_fused(module) or isinstance(module, _OURS) for module in copy.modules()):
        copy = fuse(copy, inplace=True)
    recorder = _Recorder()
    generators = torch.random.fork_rng(_gpus(model, example))
    with planning.use_backend(requested), torch.set_grad_enabled(model.training), generators, recorder:
        copy(*example)
    return recorder.calls


_OURS = ConvReLUMaxPool2d, ConvBNReLUMaxPool2d


def _gpus(model: nn.Module, example: tuple[Any, ...]) -> list[int]:
    """By number, those whose generators the model can draw from."""
    tensors = [*model.parameters(), *model.buffers(), *(t for t in example if isinstance(t, Tensor))]
    return sorted({t.device.index for t in tensors if t.device.type == "cuda"})


class _Recorder(TorchFunctionMode):
    """Sees each call of the op before it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Recorded] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is conv_relu_max_pool2d and planning.names_none(planning.requested_backend()):
            x, weight, bias = args  # as the op hands itself over, its options by name, in their order
            self._record(x, weight, bias, tuple(kwargs.values()))
        return function(*args, **kwargs)

    def _record(self, x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> None:
        x, weight, bias, geometry, plan = prepare(x, weight, bias, options, unseen=False)
        use = planning.use_of(x, weight, bias, planning.requested_backend())
        batched = x if x.dim() == 4 else x.unsqueeze(0)
        given = _like(batched), _like(weight), None if bias is None else _like(bias)
        call = Recorded(*given, x.device, geometry, use, plan.call)
        self.calls.setdefault(call.key, call)


def _like(t: Tensor) -> Tensor:
    return torch.empty_like(t, device="meta", requires_grad=False)
