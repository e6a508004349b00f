"""Fused conv2d + bias + ReLU + max-pool for PyTorch: values and gradients of torch's layers, a byte kept per output."""

from typing import TYPE_CHECKING, Any

from convpool.autograd import ConvReLUMaxPool2dFunction
from convpool.batchnorm import ConvBNReLUMaxPool2d, conv_bn_relu_max_pool2d
from convpool.functional import conv_relu_max_pool2d, explain
from convpool.fusion import Differences, FusionReport, fuse, fusion_report, unfuse, verify
from convpool.module import ConvReLUMaxPool2d
from convpool.planning import use_backend
from convpool.protocol import Backend, Plan
from convpool.registry import register_backend, unregister_backend

if TYPE_CHECKING:
    from convpool.tuning import Tuned, tune

__all__ = [
    "Backend",
    "ConvBNReLUMaxPool2d",
    "ConvReLUMaxPool2d",
    "ConvReLUMaxPool2dFunction",
    "Differences",
    "FusionReport",
    "Plan",
    "Tuned",
    "conv_bn_relu_max_pool2d",
    "conv_relu_max_pool2d",
    "explain",
    "fuse",
    "fusion_report",
    "register_backend",
    "tune",
    "unfuse",
    "unregister_backend",
    "use_backend",
    "verify",
]


def __getattr__(name: str) -> Any:
    """What measures, imported at its first use: layers that compute do without `testing`."""
    if name not in ("Tuned", "tune"):
        raise AttributeError(f"module 'convpool' has no attribute {name!r}")
    from convpool import tuning

    return getattr(tuning, name)
