"""Who takes part when a layer is timed: torch's own forms and anyone's, each found right before it is called.

A candidate is a layer and the memory layout in which it finds its tensors. On a GPU its calls have enough copies of the
inputs that none is found in the cache.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from convpool import eager, planning
from convpool.functional import conv_relu_max_pool2d
from convpool.geometry import Settings
from convpool.layout import memory_format
from convpool.protocol import Plan
from convpool.testing.parity import Inputs, Layer, Layout, check, check_layer
from convpool.testing.timing import Call, Timing, compare

Candidate: TypeAlias = tuple[Layer, Layout]
AnyInputs = TypeVar("AnyInputs", bound=Inputs)

# torch's own ways to compute the layer, by name: what a speed-up is measured against.
PLAIN: dict[str, Candidate] = {
    "eager": (eager.relu_then_pool, "nchw"),
    "eager, channels_last": (eager.relu_then_pool, "channels_last"),
    "pool before ReLU, channels_last": (eager.pool_then_relu, "channels_last"),
}


class ParityError(RuntimeError):
    """A candidate computes something else than torch; its speed means nothing."""


def compare_layer(
    inputs: Inputs,
    backends: Sequence[str] = ("auto",),
    *,
    layouts: Sequence[Layout] = ("nchw", "channels_last"),
    dx: bool = True,
    backward: bool = True,
    seconds: float = 1.0,
) -> dict[str, Timing]:
    """Time one layer by torch's own forms (`PLAIN`) and by backends in the given layouts, named "backend, layout".

    Args:
        inputs: the layer; converted to each candidate's layout beforehand.
        dx: whether x needs a gradient (a network's first layer does not).
        backward: time forward and backward, else the forward pass of inference.

    Raises:
        ParityError: a candidate's result is wrong.
    """
    ours: dict[str, Candidate] = {
        f"{backend}, {layout}": (Through(backend), layout) for backend in backends for layout in layouts
    }
    calls = {
        name: layer_calls(inputs, *candidate, dx=dx, backward=backward) for name, candidate in (PLAIN | ours).items()
    }
    return compare(calls, inputs.x.device, seconds)


def layer_calls(inputs: Inputs, layer: Layer, layout: Layout, *, dx: bool, backward: bool) -> list[Call]:
    """Calls of a layer that was found to compute what torch computes, one for each copy of its inputs.

    Raises:
        ParityError: its result is wrong for these inputs.
    """
    inputs = in_layout(inputs, layout)
    require_parity(inputs, layer, layout, dx=dx, backward=backward)
    return timed_calls(inputs, layer, dx=dx, backward=backward)


def require_parity(
    inputs: Inputs, layer: Layer, layout: str, *, dx: bool, backward: bool, rounding: bool = True
) -> None:
    """Hold a layer against torch in float64 on inputs of this shape, as they are and as integers.

    Args:
        layout: how the inputs lie in memory, for the message.
        rounding: look at random numbers too, where results are off by what the type's rounding explains; False where
            products are rounded more, as in TF32, which is exact on small integers.

    Raises:
        ParityError: its result is wrong.
    """
    plan = explained(inputs, layer.backend) if isinstance(layer, Through) else None
    kept = inputs.x.dtype in (torch.float32, torch.float64)  # integers: a half type rounds their sums
    exact = kept and (inputs.x.device.type == "cpu" or (plan is not None and plan.plan == "fused"))
    found = {
        data: check_layer(inputs, layer, integers=data == "integers", exact=exact, dx=dx, backward=backward)
        for data in ("integers", "random numbers")[: 1 + rounding]
    }
    if rounding and plan and plan.keeps_codes:
        found[f"random numbers, with the winners of backend {plan.backend}"] = check(inputs, plan.call)
    for data, parity in found.items():
        if not parity.ok:
            raise ParityError(f"wrong result for x {tuple(inputs.x.shape)}, {layout}, on {data}: {parity}")


def timed_calls(inputs: Inputs, layer: Callable[..., Tensor], *, dx: bool, backward: bool) -> list[Call]:
    """Calls of a layer that nobody checks, one for each copy of its inputs."""
    return [_call(layer, i, dx, backward) for i in _copies(inputs)]


def compiled(layer: Layer, mode: str = "default") -> Layer:
    """The layer by torch.compile, for the fixed shapes that it is called with."""
    return torch.compile(lambda *arguments: layer(*arguments), fullgraph=True, dynamic=False, mode=mode)


def best_plain(timings: Mapping[str, Timing], forms: Iterable[str] = tuple(PLAIN)) -> str:
    """The name of the fastest of torch's own forms."""
    return min(forms, key=lambda name: timings[name].median)


@dataclass(frozen=True)
class Through:
    """The layer by a backend, or by whom `auto` chooses: called as a module calls the op, with no context around it."""

    backend: str

    def __call__(self, *arguments: Any) -> Tensor:
        """The layer of its tensors and, last, its settings."""
        if self.backend != "auto" and planning.requested_backend() != self.backend:
            with planning.use_backend(self.backend):
                return self(*arguments)
        *tensors, settings = arguments
        return self.compute(tensors, op_options(settings))

    def compute(self, tensors: Sequence[Any], options: Mapping[str, Any]) -> Tensor:
        return conv_relu_max_pool2d(*tensors, **options)


@lru_cache
def op_options(s: Settings) -> Mapping[str, Any]:
    """The op's arguments that make these settings; the same objects each time, by which the op knows a call again."""
    return {
        "stride": s.stride,
        "padding": (s.padding[0], s.padding[2]) if s.symmetric_padding else "same",
        "dilation": s.dilation,
        "groups": s.groups,
        "pool_kernel_size": s.pool_kernel,
        "pool_stride": s.pool_stride,
        "pool_padding": s.pool_padding,
        "pool_dilation": s.pool_dilation,
        "ceil_mode": s.ceil_mode,
        "contiguous_output": s.contiguous_output,
    }


def explained(inputs: Inputs, backend: str) -> Plan:
    """Who computes the layer when asked by the name of a backend or `auto`, and why."""
    return planning.plan_for(inputs.x, inputs.weight, inputs.settings, backend)


def in_layout(inputs: AnyInputs, layout: Layout) -> AnyInputs:
    """The same numbers, their 4-d tensors in one layout."""
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x, weight, dy = (torch.empty_like(t, memory_format=format).copy_(t) for t in (inputs.x, inputs.weight, inputs.dy))
    return replace(inputs, x=x, weight=weight, dy=dy)


def _call(layer: Callable[..., Tensor], inputs: Inputs, dx: bool, backward: bool) -> Call:
    if not backward:
        arguments = inputs.arguments(inputs.tensors)

        def infer() -> object:
            with torch.no_grad():
                return layer(*arguments)

        return infer
    leaves = [t.detach().requires_grad_() for t in inputs.tensors]
    wanted = leaves if dx else leaves[1:]
    arguments = inputs.arguments(leaves if dx else [inputs.x, *wanted])
    dy = inputs.dy.contiguous(memory_format=memory_format(inputs.x, inputs.weight, inputs.settings))

    def train() -> object:
        return torch.autograd.grad(layer(*arguments), wanted, dy)

    return train


def _copies(inputs: Inputs) -> list[Inputs]:
    """One on a CPU, whose caches hold a layer's input in training too; on a GPU as many as overflow its cache."""
    if inputs.x.device.type != "cuda":
        return [inputs]
    bytes_ = (inputs.x.numel() + inputs.dy.numel()) * inputs.x.element_size()
    count = 1 + 2 * torch.cuda.get_device_properties(inputs.x.device).L2_cache_size // max(1, bytes_)
    return [replace(inputs, x=inputs.x.clone(), dy=inputs.dy.clone()) for _ in range(min(count, 64))]
