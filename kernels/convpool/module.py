"""`ConvReLUMaxPool2d`: an nn.Conv2d whose forward goes on through ReLU and max-pool."""

from types import FunctionType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from convpool import eager
from convpool.functional import conv_relu_max_pool2d
from convpool.geometry import Pair, make_settings
from convpool.torch_private import CALL_HOOKS, reversed_padding

# What repr leaves out.
_DEFAULTS = {"pool_padding": 0, "pool_dilation": 1, "ceil_mode": False, "contiguous_output": False, "plain": False}

torch.fx.wrap("conv_relu_max_pool2d")  # torch.fx then records the op as one node


class ConvReLUMaxPool2d(nn.Conv2d):
    """`max_pool2d(relu(conv2d(x)))` with the parameters, initialisation and state_dict keys of nn.Conv2d.

    Takes nn.Conv2d's arguments, and nn.MaxPool2d's under names that begin with `pool_`. `contiguous_output`: return a
    contiguous tensor even in a channels_last model, so that flattening it copies nothing.
    Shapes: x (N, C_in, H, W) or (C_in, H, W) to (N, C_out, pooled H, pooled W) or (C_out, pooled H, pooled W).

    Attributes:
        plain: run torch's own layers with the same parameters: the twin for export and comparison.

    Raises:
        TypeError, ValueError: at construction, for arguments that no input could fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        pool_kernel_size: int | Pair = 2,
        pool_stride: int | Pair | None = None,
        pool_padding: int | Pair = 0,
        pool_dilation: int | Pair = 1,
        ceil_mode: bool = False,
        contiguous_output: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self.pool_kernel_size = pool_kernel_size
        self.pool_stride = pool_stride
        self.pool_padding = pool_padding
        self.pool_dilation = pool_dilation
        self.ceil_mode = ceil_mode
        self.contiguous_output = contiguous_output
        self.plain = False
        make_settings(self.kernel_size, padding=self.padding, **self._options())  # type: ignore[arg-type]  # or refuses

    @classmethod
    def from_layers(cls, conv: nn.Conv2d, pool: nn.MaxPool2d) -> Self:
        """The layer that computes `pool(relu(conv(x)))`, sharing conv's parameters and training mode.

        Raises:
            TypeError: conv is not an nn.Conv2d or pool not an nn.MaxPool2d, or one of them does more than these.
            ValueError: pool returns indices.
        """
        if not isinstance(conv, nn.Conv2d) or not isinstance(pool, nn.MaxPool2d):
            raise TypeError(
                f"from_layers takes nn.Conv2d, nn.MaxPool2d, got {type(conv).__name__}, {type(pool).__name__}"
            )
        for name, layer, kind in (("conv", conv, nn.Conv2d), ("pool", pool, nn.MaxPool2d)):
            if not computes_as(kind, layer):
                raise TypeError(f"{name} must compute what nn.{kind.__name__} does, got {type(layer).__name__}")
            if is_parametrized(layer):
                raise TypeError(f"{name} must have parameters of its own, got a parametrized one: use convpool.fuse")
            if isinstance(layer, LazyModuleMixin):
                raise TypeError(f"{name} must know its sizes, got a lazy one that has seen no input yet")
            if is_hooked(layer):
                raise TypeError(f"{name} must have no hooks: the fused layer would not run them")
        if pool.return_indices:
            raise ValueError("pool must have return_indices=False: the fused layer keeps no such indices")
        layer = cls(**conv_arguments(conv), **pool_options(pool))
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        x, padding = padded_input(self, x)
        weight, bias = self.weight, self.bias  # looked up once: nn.Module finds them by a function in Python
        if self.plain:
            settings = make_settings(self.kernel_size, padding=padding, **self._options())
            return eager.relu_then_pool(x, weight, bias, settings)
        return conv_relu_max_pool2d(x, weight, bias, padding=padding, **self._options())

    def extra_repr(self) -> str:
        pool = f"pool_kernel_size={self.pool_kernel_size}"
        if self.pool_stride not in (None, self.pool_kernel_size):
            pool += f", pool_stride={self.pool_stride}"
        for name, default in _DEFAULTS.items():
            if getattr(self, name) != default:
                pool += f", {name}={getattr(self, name)}"
        return f"{super().extra_repr()}, {pool}"

    def __prepare_scriptable__(self) -> Self:
        """What torch.jit.script asks a module for; it knows neither the op nor keyword arguments in a dict."""
        raise RuntimeError(
            "torch.jit.script cannot compile ConvReLUMaxPool2d: set its plain = True and use torch.jit.trace, "
            "or script the nn.Conv2d, nn.ReLU and nn.MaxPool2d that it stands for"
        )

    def _options(self) -> dict[str, Any]:
        """The op's arguments after `bias`, without padding."""
        return {
            "stride": self.stride,
            "dilation": self.dilation,
            "groups": self.groups,
            "pool_kernel_size": self.pool_kernel_size,
            "pool_stride": self.pool_stride,
            "pool_padding": self.pool_padding,
            "pool_dilation": self.pool_dilation,
            "ceil_mode": self.ceil_mode,
            "contiguous_output": self.contiguous_output,
        }


def conv_arguments(conv: nn.Conv2d) -> dict[str, Any]:
    """What nn.Conv2d takes to make conv again, without parameters: those on the device "meta" wait to be replaced."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(conv, name) for name in names} | {"bias": conv.bias is not None, "device": "meta"}


def conv_options(conv: Any) -> dict[str, Any]:
    """The op's arguments that say how conv steps over its input; what it pads is `padded_input`'s business."""
    return {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}


def pool_options(pool: Any) -> dict[str, Any]:
    """The op's arguments that say how pool does, an nn.MaxPool2d or what has its attributes."""
    return {
        "pool_kernel_size": pool.kernel_size,
        "pool_stride": pool.stride,
        "pool_padding": pool.padding,
        "pool_dilation": pool.dilation,
        "ceil_mode": pool.ceil_mode,
    }


# "forward", and what it calls: the methods that nn.Conv2d itself defines.
_CONV_METHODS = tuple(
    name for name, value in vars(nn.Conv2d).items() if isinstance(value, FunctionType) and name[:2] != "__"
)


def computes_as(kind: type[nn.Module], layer: nn.Module) -> bool:
    """Whether the layer computes what `kind` does: subclasses may add parametrizations, not another forward."""
    cls = type(layer)
    if cls is kind:  # asked of every layer at each call
        return True
    methods = ("__call__", *(_CONV_METHODS if kind is nn.Conv2d else ("forward",)))
    return isinstance(layer, kind) and all(getattr(cls, name) is getattr(kind, name) for name in methods)


def is_hooked(layer: Any) -> bool:
    """Whether calling the layer does more than its class's forward: hooks, or a method of it set on the instance."""
    if not isinstance(layer, nn.Module):
        return False
    own = layer.__dict__  # asked of every layer at each call, and traced by the compiler: plain loops
    for table in CALL_HOOKS:
        if own[table]:
            return True
    for name in _CONV_METHODS:
        if name in own:
            return True
    return not CALL_HOOKS  # there may be some


def padded_input(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Any]:
    """x as conv's kernel gets it (a padding_mode other than zeros pads first), and what the op still has to pad."""
    if conv.padding_mode == "zeros":
        return x, conv.padding
    around = reversed_padding(conv)
    if around is None:
        settings = make_settings(conv.kernel_size, padding=conv.padding, dilation=conv.dilation)  # type: ignore[arg-type]
        top, bottom, left, right = settings.padding
        around = left, right, top, bottom
    return F.pad(x, around, mode=conv.padding_mode), 0
