"""`ConvBNReLUMaxPool2d`: an nn.Conv2d, an nn.BatchNorm2d and an nn.MaxPool2d whose forward is one op."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convpool.batchnorm.functional import conv_bn_relu_max_pool2d
from convpool.geometry import Pair, make_settings
from convpool.module import computes_as, conv_options, is_hooked, padded_input, pool_options


def uses_batch_statistics(norm: Any) -> bool:
    """Whether an nn.BatchNorm2d, as it is now, normalises by the batch's own mean and variance."""
    return norm.training or norm.running_mean is None


def normalised(x: Tensor, conv: Any, norm: Any, options: Mapping[str, Any]) -> Tensor:
    """`max_pool2d(relu(norm(conv(x))))` as one op, the norm's buffers and counter updated as by its own forward.

    Args:
        conv, norm: an nn.Conv2d and an nn.BatchNorm2d.
        options: the op's arguments after `eps` that are not the conv's: those of the pool, and `contiguous_output`.
    """
    x, padding = padded_input(conv, x)
    momentum = norm.momentum
    tracks = norm.training and norm.track_running_stats
    if tracks and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            dtype = torch.promote_types(norm.running_mean.dtype, torch.float32)
            momentum = norm.num_batches_tracked.to(dtype).reciprocal()  # the mean of all; nobody waits for a device
    reads = tracks or not norm.training
    return conv_bn_relu_max_pool2d(
        x,
        conv.weight,
        conv.bias,
        norm.weight,
        norm.bias,
        norm.running_mean if reads else None,
        norm.running_var if reads else None,
        training=uses_batch_statistics(norm),
        momentum=0.0 if momentum is None else momentum,
        eps=norm.eps,
        padding=padding,
        **conv_options(conv),
        **options,
    )


def _check_settings(conv: Any, pool: Any) -> None:
    """Refuse what `make_settings` does."""
    make_settings(conv.kernel_size, padding=conv.padding, **conv_options(conv), **pool_options(pool))


class ConvBNReLUMaxPool2d(nn.Module):
    """`max_pool2d(relu(batch_norm(conv2d(x))))` with its layers' parameters, buffers and initialisation.

    Takes nn.Conv2d's arguments (but no bias, unless asked for: the norm takes it away), nn.BatchNorm2d's, and
    nn.MaxPool2d's under names that begin with `pool_`. `contiguous_output`: return a contiguous tensor even in a
    channels_last model, so that flattening it copies nothing.
    Shapes: x (N, C_in, H, W) to (N, C_out, pooled H, pooled W).

    Attributes:
        conv, norm, pool: the layers; state_dict has their keys, as "conv.weight" and "norm.running_mean".
        plain: run the layers one by one: the twin for export and comparison.

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
        bias: bool = False,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        pool_kernel_size: int | Pair = 2,
        pool_stride: int | Pair | None = None,
        pool_padding: int | Pair = 0,
        pool_dilation: int | Pair = 1,
        ceil_mode: bool = False,
        contiguous_output: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, **made
        )
        self.norm = nn.BatchNorm2d(out_channels, eps, momentum, affine, track_running_stats, **made)
        self.pool = nn.MaxPool2d(
            pool_kernel_size, pool_stride, pool_padding, pool_dilation, return_indices=False, ceil_mode=ceil_mode
        )
        self.contiguous_output = contiguous_output
        self.plain = False
        _check_settings(self.conv, self.pool)

    @classmethod
    def from_layers(cls, conv: nn.Conv2d, norm: nn.BatchNorm2d, pool: nn.MaxPool2d) -> Self:
        """The layer that computes `pool(relu(norm(conv(x))))`; it holds these very layers, in norm's training mode.

        Raises:
            TypeError: one of them is of another class, or does more than that class does.
            ValueError: pool returns indices, or norm is for another number of channels than conv's.
        """
        parts: tuple[tuple[str, Any, type[nn.Module]], ...] = (
            ("conv", conv, nn.Conv2d),
            ("norm", norm, nn.BatchNorm2d),
            ("pool", pool, nn.MaxPool2d),
        )
        for name, layer, kind in parts:
            if not computes_as(kind, layer):
                raise TypeError(f"{name} must compute what nn.{kind.__name__} does, got {type(layer).__name__}")
        if pool.return_indices:
            raise ValueError("pool must have return_indices=False: the fused layer keeps no such indices")
        if norm.num_features != conv.out_channels:
            raise ValueError(f"norm must be for the {conv.out_channels} channels of conv, got {norm.num_features}")
        layer = cls(1, 1, 1, device="meta")
        layer.conv, layer.norm, layer.pool = conv, norm, pool
        _check_settings(conv, pool)
        layer.training = norm.training
        return layer

    def forward(self, x: Tensor) -> Tensor:
        # torch.fx, which shows no tensor, records the layers: they follow train() and eval(), and count batches.
        if (
            self.plain
            or not isinstance(x, Tensor)
            or x.dim() != 4
            or is_hooked(self.conv)
            or is_hooked(self.norm)
            or is_hooked(self.pool)
        ):
            y: Tensor = self.pool(F.relu(self.norm(self.conv(x))))
            return y.contiguous() if self.contiguous_output else y
        options = {**pool_options(self.pool), "contiguous_output": self.contiguous_output}
        return normalised(x, self.conv, self.norm, options)

    def extra_repr(self) -> str:
        flags = {name: getattr(self, name) for name in ("contiguous_output", "plain")}
        return ", ".join(f"{name}=True" for name, value in flags.items() if value)

    def __prepare_scriptable__(self) -> Self:
        """What torch.jit.script asks a module for; it does not know the op."""
        raise RuntimeError(
            "torch.jit.script cannot compile ConvBNReLUMaxPool2d: set its plain = True and use torch.jit.trace, "
            "or script its conv, norm and pool, with an nn.ReLU between the last two"
        )
