"""What a call takes by the libraries' kernels, estimated in nanoseconds: the other side of the rule of `cost.py`."""

from convpool.cost import PRODUCT, Counts, torch_calls
from convpool.geometry import Geometry

_CACHED_WEIGHTS = 1 << 17  # more overflow the cache of a core


def direct_forward(g: Geometry, threads: int, lanes: int, *, channels_last: bool, pooled: bool) -> float:
    """forward_direct: output channels are filled up to whole vectors. `pooled`: in registers, not from memory."""
    waiting = 1.3 if g.group_outputs <= lanes else 1  # one vector, for loads
    waiting *= 1.4 if not channels_last and g.group_channels >= 64 else 1  # for channels that lie far apart
    outputs = Counts.of(g).z / g.group_outputs * _filled(g.group_outputs, lanes)
    stored = 0 if pooled else 0.3 * outputs
    return _packed_forward(g, threads, 9.5e-3 * waiting * outputs * g.reduction + stored)


def images_forward(g: Geometry, threads: int, lanes: int) -> float:
    """forward_images: the batch is filled up to whole vectors."""
    n = Counts.of(g)
    return _packed_forward(g, threads, 8.6e-3 * n.z * g.reduction * _filled(g.batch, lanes) / g.batch)


def _packed_forward(g: Geometry, threads: int, products: float) -> float:
    """With all that is no product: weights are packed at each call, and read by each image."""
    n = Counts.of(g)
    streamed = 4 * g.batch * max(0, n.weights - _CACHED_WEIGHTS)
    rest = 0.2 * n.y + 2 * g.batch * g.settings.groups * g.reduction + 0.02 * streamed
    return 7e3 + 0.75 * n.weights + (products + rest) / threads


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


def backward(g: Geometry, threads: int, *, dx: bool) -> float:
    """The gradients of weight and bias, and of x where that has one, from the winners alone."""
    n, one_tap = Counts.of(g), g.kernel == (1, 1)  # whose rows are short
    # The gradient of many weights is summed in several parts, which no cache holds.
    heavy = max(0, n.weights - _CACHED_WEIGHTS)
    if dx:
        work = (36e-3 if one_tap else 24e-3) * n.live + 2 * n.y + 0.9 * n.x
        return _calls(threads) + 1.7 * n.weights + 8 * heavy + work / threads
    lists = 400 * g.out_channels if one_tap else 0
    work = 23e-3 * n.live + (2 if one_tap else 1) * n.y + 0.45 * n.x + lists
    return _calls(threads) + 0.8 * n.weights + 4 * heavy + work / threads


def _calls(threads: int) -> float:
    return 27e3 if threads == 1 else 35e3


def _filled(channels: int, lanes: int) -> int:
    """Channels, in whole vectors."""
    return -(-channels // lanes) * lanes
