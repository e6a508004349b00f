"""Fused conv2d + bias + ReLU + max-pool for PyTorch: values and gradients of torch's layers, a byte kept per output."""

from convpool.autograd import ConvReLUMaxPool2dFunction
from convpool.functional import conv_relu_max_pool2d, explain
from convpool.fusion import fuse, fusion_report, unfuse, verify
from convpool.module import ConvReLUMaxPool2d
from convpool.planning import use_backend

__all__ = [
    "ConvReLUMaxPool2d",
    "ConvReLUMaxPool2dFunction",
    "conv_relu_max_pool2d",
    "explain",
    "fuse",
    "fusion_report",
    "unfuse",
    "use_backend",
    "verify",
]
