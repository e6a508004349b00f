"""conv2d -> BatchNorm2d under its own batch's statistics -> ReLU -> max-pool as one op, with a byte kept per output.

functional.py `conv_bn_relu_max_pool2d`
module.py     `ConvBNReLUMaxPool2d`, and how an nn.BatchNorm2d keeps its buffers
obstacle.py   whether layers are one op at all, before their input is known
autograd.py   the derivatives
operators.py  what torch's compiler sees
fold.py       the mathematics: the norm as part of the conv
eager.py      torch's own layers

Imports `checks`, `eager`, `functional`, `geometry`, `layout`, `module`, `operators`, `planning`, `protocol`,
`registry` and `torch_private`.
"""

from convpool.batchnorm.functional import conv_bn_relu_max_pool2d
from convpool.batchnorm.module import ConvBNReLUMaxPool2d

__all__ = ["ConvBNReLUMaxPool2d", "conv_bn_relu_max_pool2d"]
