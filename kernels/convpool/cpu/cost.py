"""What a call takes by the libraries' kernels, estimated in nanoseconds: the other side of the rule of `cost.py`."""

from convpool.cost import PRODUCT, Counts, torch_calls
from convpool.geometry import Geometry

_CACHED_WEIGHTS, _SHARED_WEIGHTS = 1 << 17, 1 << 20  # more overflow the cache of a core, and that of all


def direct_forward(g: Geometry, threads: int, lanes: int) -> float:
    """forward_direct and forward_images: vectors are filled up, and weights are packed at each call."""
    n = Counts.of(g)
    products = n.products * (1.3 if g.group_outputs <= lanes else 1)  # one vector waits for loads
    streamed = 4 * g.batch * max(0, n.weights - _CACHED_WEIGHTS)  # by each image
    rest = 0.2 * n.y + 2 * g.batch * g.settings.groups * g.reduction + 0.02 * streamed
    return 7e3 + 0.75 * n.weights + (9.5e-3 * products + rest) / threads


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
        rest = 0.75 * n.weights + 0.78 * n.x + 0.05 * n.z + 0.5 * n.y
    else:
        rest = 0.4 * n.weights + 0.3 * n.x + 0.7 * n.z
    return torch_calls(threads) + 5e3 + (PRODUCT * n.products + 0.5 * n.thin + rest) / threads


def backward(n: Counts, threads: int, *, dx: bool) -> float:
    """The gradients of weight and bias, and of x where that has one, from the winners alone."""
    calls = 27e3 if threads == 1 else 35e3
    if dx:
        # Their gradient is summed in several parts, which no cache holds for long.
        weights = 1.7 * n.weights + 3.5 * max(0, n.weights - _CACHED_WEIGHTS) + 4 * max(0, n.weights - _SHARED_WEIGHTS)
        return calls + weights + (24e-3 * n.live + 2 * n.y + 0.9 * n.x) / threads
    return calls + 0.8 * n.weights + (23e-3 * n.live + n.y + 0.45 * n.x) / threads


def _filled(channels: int, lanes: int) -> int:
    """Channels, in whole vectors."""
    return -(-channels // lanes) * lanes
