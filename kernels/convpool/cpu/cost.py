"""What a call takes by the libraries' kernels, estimated in nanoseconds: the other side of the rule of `cost.py`."""

from convpool.cost import PRODUCT, Counts
from convpool.geometry import Geometry

_CACHED_WEIGHTS = 1 << 17  # more of them overflow the cache of a core


def direct_forward(g: Geometry, threads: int, lanes: int) -> float:
    """forward_direct and forward_images: vectors are filled up, and weights are packed at each call."""
    n, channels = Counts.of(g), _filled(g.group_outputs, lanes)
    products = n.products / g.group_outputs * channels * (1.3 if channels == lanes else 1)  # one vector waits for loads
    streamed = 4 * g.batch * max(0, n.weights - _CACHED_WEIGHTS)  # by each image
    rest = 0.2 * n.y + 2 * g.batch * g.settings.groups * g.reduction + 0.02 * streamed
    return 7e3 + 0.75 * n.weights + (8.6e-3 * products + rest) / threads


def winograd_forward(g: Geometry, threads: int, lanes: int, *, busy: bool) -> float:
    """forward_winograd; where it is not `busy`, one thread computes. Each thread fetches all transformed weights."""
    windows = g.batch * g.settings.groups * g.pooled_height * g.pooled_width
    channels = _filled(g.group_channels, lanes) * _filled(g.group_outputs, lanes)
    weights = (4 if threads == 1 else 6) * g.group_channels * g.out_channels
    return 7e3 + weights + (3 * windows * g.group_channels + 0.133 * windows * channels) / (threads if busy else 1)


def split_forward(n: Counts, threads: int, *, channels_last: bool, innermost: bool) -> float:
    """torch's convolution and `pool`, which reads channels_last: x is brought to that format, or the conv output."""
    if channels_last:
        rest = 0.25 * n.weights + 0.25 * n.x + 0.33 * n.z + 1.4 * n.y
    elif innermost:
        rest = 0.75 * n.weights + 0.75 * n.x + 0.05 * n.z + 0.5 * n.y
    else:
        rest = 0.35 * n.weights + 0.25 * n.x + 0.7 * n.z
    return 12e3 + (PRODUCT * n.products + rest) / threads


def backward(n: Counts, threads: int, *, dx: bool) -> float:
    """The gradients of weight and bias, and of x where that has one, from the winners alone."""
    if dx:
        weights = 1.7 * n.weights + 0.4 * max(0, n.weights - _CACHED_WEIGHTS)
        return 27e3 + weights + (24e-3 * n.live + 2 * n.y + 0.9 * n.x) / threads
    return 27e3 + 0.8 * n.weights + (23e-3 * n.live + n.y + 0.45 * n.x) / threads


def _filled(channels: int, lanes: int) -> int:
    """Channels, in whole vectors."""
    return -(-channels // lanes) * lanes
