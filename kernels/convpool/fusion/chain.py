"""What a fused model does at each call: layer after layer, with conv -> ReLU -> max-pool as one op where that holds.

Nothing is decided here once and for all. Every look is at the layers as they are, so a hook added later, a layer
replaced, a norm switched to training mode get what the unfused model would do.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from convpool.batchnorm.fold import under_running_statistics
from convpool.batchnorm.module import normalised, uses_batch_statistics
from convpool.batchnorm.obstacle import obstacle
from convpool.functional import conv_relu_max_pool2d, explain
from convpool.module import computes_as, conv_options, is_hooked, padded_input, pool_options
from convpool.planning import use_of
from convpool.protocol import Plan, Use
from convpool.torch_private import BATCH_NORMS, has_any_global_hook


class ReLU(NamedTuple):
    """A ReLU called as a function."""

    inplace: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=self.inplace)


class MaxPool2d(NamedTuple):
    """Max-pooling called as a function; the fields are those of nn.MaxPool2d."""

    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class Call(NamedTuple):
    """Another function of one tensor, known by name only: reports mention it, chains that run never hold it."""

    name: str


Layer: TypeAlias = nn.Module | ReLU | MaxPool2d | Call

_CONVS = nn.Conv1d, nn.Conv2d, nn.Conv3d
_NORMS = *BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
_FUNCTIONAL_NORMS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm"})
_FUNCTIONAL_ACTIVATIONS = frozenset(
    {"celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "prelu"}
    | {"relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh", "threshold"}
)


class Run(NamedTuple):
    """Consecutive layers: conv, perhaps a norm, activation and pool in either order; `misfit` looks at their kinds."""

    conv: Any
    norm: Any
    activation: Any
    pool: Any
    layers: tuple[Any, ...]  # all of them in order, with the identities and dropouts between them

    def misfit(self) -> str | None:
        """Why layers of these kinds never fuse, or None."""
        if isinstance(self.conv, Call):
            return f"{self.conv.name} is called as a function: only nn.Conv2d layers are fused"
        if not isinstance(self.conv, nn.Conv2d):
            return f"{_kind(self.conv)} is not Conv2d"
        if not computes_as(nn.Conv2d, self.conv):
            return f"{_kind(self.conv)} has a forward of its own"
        if self.norm is not None and not isinstance(self.norm, nn.BatchNorm2d):
            return f"{_kind(self.norm)} is not BatchNorm2d"
        if self.norm is not None and not computes_as(nn.BatchNorm2d, self.norm):
            return f"{_kind(self.norm)} has a forward of its own"
        if not isinstance(self.activation, ReLU) and not computes_as(nn.ReLU, self.activation):
            return f"{_kind(self.activation)} is not ReLU"
        if not isinstance(self.pool, MaxPool2d) and not computes_as(nn.MaxPool2d, self.pool):
            return f"{_kind(self.pool)} is not MaxPool2d"
        if getattr(self.pool, "return_indices", False):
            return "the pool returns its indices"
        return None

    def interruption(self) -> str | None:
        """What keeps layers that fit from being fused for as long as it is there, or None."""
        for layer in self.layers:
            if is_hooked(layer):
                return f"a hook on {_kind(layer)}"
        for layer in self.layers:
            if _is_dropout(layer) and layer.training and layer.p > 0:
                return f"{_kind(layer)} is active (training mode)"
        return None

    def obstacle(self, dx: bool, x: Tensor | None = None) -> str | None:
        """Why layers that fit are not fused at the moment, or None.

        Args:
            dx: whether their input has a gradient, where it is not known.
            x: their input, where it is known.
        """
        found = self.interruption()
        if found or not self.batch_statistics:
            return found
        if x is None:
            found = obstacle(self.conv, self.pool, Use(training=True, dx=dx))
        else:
            found = obstacle(self.conv, self.pool, use_of(x, self.conv.weight), x.shape)
        return found and f"batch statistics (training mode): {found}"

    def obstacle_for(self, x: Any) -> str | None:
        """As `obstacle`, where their input is x: a tensor, or what stands for one while torch.fx traces."""
        return self.obstacle(False, x if isinstance(x, Tensor) else None)

    @property
    def batch_statistics(self) -> bool:
        """Whether there is a norm that normalises by the batch's own mean and variance."""
        return self.norm is not None and uses_batch_statistics(self.norm)

    def fused(self, x: Tensor) -> Tensor:
        if self.batch_statistics:
            return normalised(x, self.conv, self.norm, pool_options(self.pool))
        return self._asked(conv_relu_max_pool2d, x)

    def explain(self, x: Tensor) -> Plan:
        """The plan by which `fused` computes x."""
        return self._asked(partial(explain, batch_statistics=self.batch_statistics), x)

    def _asked(self, function: Callable[..., Any], x: Tensor) -> Any:
        """What a function of the op's arguments says to those of this run: running statistics are part of the conv."""
        conv, norm = self.conv, self.norm
        weight, bias = conv.weight, conv.bias
        if norm is not None and not self.batch_statistics:
            moving = norm.running_mean, norm.running_var
            weight, bias = under_running_statistics(weight, bias, norm.weight, norm.bias, *moving, norm.eps)
        x, padding = padded_input(conv, x)
        return function(x, weight, bias, padding=padding, **conv_options(conv), **pool_options(self.pool))

    def one_by_one(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def run_chain(x: Tensor, layers: Sequence[Any]) -> tuple[Any, bool]:
    """`for layer in layers: x = layer(x)`, with each run that can be fused at this moment as one op.

    Returns:
        x after the last layer, and whether nothing was fused and nothing would be without interruptions: then calls
        like this one need no look.
    """
    if has_any_global_hook():
        for layer in layers:
            x = layer(x)
        return x, False
    layers = _expanded(layers)
    i, idle = 0, True
    while i < len(layers):
        run = run_at(layers, i)
        if run is None or run.misfit():
            x, i = layers[i](x), i + 1
        elif run.obstacle_for(x):
            idle = idle and not run.interruption()
            x, i = layers[i](x), i + 1
        else:
            x, i, idle = run.fused(x), i + len(run.layers), False
    return x, idle


def run_at(layers: Sequence[Any], start: int) -> Run | None:
    """The run that begins with the layer at `start`, if one does."""
    conv = layers[start]
    if not _is_conv(conv):
        return None
    norm = activation = pool = None
    for stop in range(start + 1, len(layers)):
        layer = layers[stop]
        if type(layer) is nn.Identity or _is_dropout(layer):
            continue
        if norm is None and activation is None and pool is None and _is_norm(layer):
            norm = layer
        elif activation is None and _is_activation(layer):
            activation = layer
        elif pool is None and _is_pool(layer):
            pool = layer
        else:
            return None
        if activation is not None and pool is not None:
            return Run(conv, norm, activation, pool, tuple(layers[start : stop + 1]))
    return None


def _expanded(layers: Sequence[Any]) -> list[Any]:
    """The layers; one that only calls others in order is replaced by these, so that runs reach across its border."""
    flat: list[Any] = []
    for layer in layers:
        inner = _layers_of(layer)
        if inner is None:
            flat.append(layer)
        else:
            flat.extend(_expanded(inner))
    return flat


def _layers_of(layer: Any) -> list[Any] | None:
    cls = type(layer)
    if not isinstance(layer, nn.Module):
        return None
    rewritten: Any = getattr(cls, "convpool_layers", None)
    in_order = cls.forward is nn.Sequential.forward
    if not (in_order or rewritten) or is_hooked(layer) or cls.__call__ is not nn.Module.__call__:
        return None
    sequence: Any = layer
    return list(sequence) if in_order else rewritten(layer)


def _is_conv(layer: Any) -> bool:
    if isinstance(layer, Call):
        return layer.name in ("conv1d", "conv2d", "conv3d")
    return isinstance(layer, _CONVS)


def _is_norm(layer: Any) -> bool:
    if isinstance(layer, Call):
        return layer.name in _FUNCTIONAL_NORMS
    return isinstance(layer, _NORMS) or "Norm" in _kind(layer)


def _is_activation(layer: Any) -> bool:
    if isinstance(layer, Call):
        return layer.name.rstrip("_") in _FUNCTIONAL_ACTIVATIONS
    return isinstance(layer, ReLU) or type(layer).__module__ == nn.ReLU.__module__


def _is_pool(layer: Any) -> bool:
    if isinstance(layer, Call):
        return "_pool" in layer.name
    return isinstance(layer, MaxPool2d) or "Pool" in _kind(layer)


def _is_dropout(layer: Any) -> bool:
    return type(layer).__module__ == nn.Dropout.__module__


def _kind(layer: Any) -> str:
    return layer.name if isinstance(layer, Call) else type(layer).__name__
