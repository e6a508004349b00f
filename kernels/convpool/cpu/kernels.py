"""Which kernel of the libraries computes a call, and on how many threads: the one place where that is decided.

Geometry, strides, the number of threads and the width of a vector decide; no bit of a result hangs on the threads.
"""

from dataclasses import dataclass
from enum import IntEnum

from convpool.cost import Counts, torch_layers
from convpool.cpu.cost import backward, direct_forward, images_forward, split_forward, winograd_forward
from convpool.geometry import Geometry
from convpool.layout import Strides
from convpool.protocol import Needs, Use

# `auto` takes ours where they are estimated to take this much less than torch's layers: the estimates err, and what
# errs must not be slower. Training errs more.
_MARGIN, _TRAINING_MARGIN = 1.1, 1.15
_SPLIT_PRODUCTS = 1500  # for each conv output, where nothing else can be asked: more are torch's
# Batch statistics, in products of a convolution: what torch's norm, ReLU and pool take more than ours an output,
# what a step's calls from Python take, and a block of patch_moments.h besides its products (docs/measurements.md).
_OUTPUT, _CALLS = 160, 64e6
_BLOCK, _BLOCK_SUMS = 1500, 14
MOST_PATCH_VALUES = 1024  # whose scatter is formed: 8 MiB
_FEW_PRODUCTS = 32  # beyond, backward's lists of live positions are faster than backward_few (measured at 27 and 50)
_WINOGRAD_CHANNELS = 12  # of the input, in a group: with fewer the transforms do not pay
# A forward pass shorter than these wakes no second thread. With one thread and two: 0.24 million products take
# forward_direct 7 and 12 us, 0.78 million 22 and 14; 50 windows take forward_winograd 52 and 62 us, 100 windows 85 and
# 79 (each thread fetches all of the transformed weights).
_BUSY_PRODUCTS, _BUSY_WINDOWS = 1 << 19, 64
_BUSY_WEIGHTS = 1 << 17  # take longer to pack than a second thread to wake


class Kernel(IntEnum):
    """The kernels of the libraries, in the order of `Kernel` in src/problem.h."""

    FORWARD_DIRECT = 0
    FORWARD_IMAGES = 1
    FORWARD_WINOGRAD = 2
    POOL = 3  # after torch's convolution
    BACKWARD = 4
    BACKWARD_FEW = 5
    PATCH_MOMENTS = 6  # before the forward pass, where the conv output is normalised by its own statistics


@dataclass(frozen=True)
class Choice:
    """A kernel, and the threads that it works on: all there are, or one. libgomp ends those that a team leaves out."""

    kernel: Kernel
    threads: int


def is_split(g: Geometry, use: Use, lanes: int) -> bool:
    """Whether torch convolves, and only pooling and the gradients are ours."""
    if use.symbolic:
        return not _takes_winograd(g) and g.reduction > _SPLIT_PRODUCTS
    return _split(g, use) < _fused(g, use, lanes)


def why_slower(g: Geometry, use: Use, lanes: int) -> str:
    """In words why torch's own layers are not slower for this use, or nothing."""
    if g.settings.groups > 1 and g.group_outputs < 8:  # counted, not timed
        return f"{g.group_outputs} output channels a group leave most of a vector's lanes idle"
    if g.kernel == (1, 1) and g.group_outputs == 1:
        return "one output channel of a kernel of 1x1 is a product of matrices"
    if use.symbolic:
        return _OVERLAP if _windows_overlap(g) else ""
    n = Counts.of(g)
    ours = min(_split(g, use), _fused(g, use, lanes))
    forms = {"channels_last": use.channels_last, "training": use.training, "dx": use.dx}
    theirs = min(torch_layers(n, use.threads, innermost=innermost, **forms) for innermost in (False, True))
    if use.training:
        ours += backward(g, use.threads, dx=use.dx)
    if ours * (_TRAINING_MARGIN if use.training else _MARGIN) <= theirs:
        return ""
    return f"estimated to take {ours / theirs:.2f} times as long as torch's own layers in {_words(use)}"


def _windows_overlap(g: Geometry) -> bool:
    return 2 * g.pooled_height * g.pooled_width > g.conv_height * g.conv_width


_OVERLAP = "with more than one window for two conv outputs, the winners save no arithmetic"


def _words(use: Use) -> str:
    return f"{'training' if use.training else 'inference'} on {use.threads} thread{'s' * (use.threads > 1)}"


def _split(g: Geometry, use: Use) -> float:
    n, innermost = Counts.of(g), convolves_innermost(g)
    return split_forward(n, use.threads, channels_last=use.channels_last, innermost=innermost)


def _fused(g: Geometry, use: Use, lanes: int) -> float:
    if _takes_winograd(g):
        return winograd_forward(g, use.threads, lanes, busy=_windows(g) >= _BUSY_WINDOWS)
    vectors = _image_vectors(g, lanes)
    images = bool(vectors) and (g.group_outputs <= lanes or (not use.channels_last and vectors >= use.threads))
    if images:
        return images_forward(g, use.threads, lanes)
    return direct_forward(g, use.threads, lanes, channels_last=use.channels_last, pooled=_plain_pool(g))


def convolves_innermost(g: Geometry) -> bool:
    """Whether the split plan brings x to channels_last before torch convolves it, not the conv output after that."""
    before, after = (
        split_forward(Counts.of(g), 1, channels_last=False, innermost=innermost) for innermost in (True, False)
    )
    return before <= after


def forward_kernel(g: Geometry, x_stride: Strides, y_stride: Strides, threads: int, lanes: int) -> Choice:
    """What computes the forward pass of the fused plan, with vectors of so many lanes."""
    windows = _windows(g)
    if _takes_winograd(g):
        return Choice(Kernel.FORWARD_WINOGRAD, threads if windows >= _BUSY_WINDOWS else 1)
    products = windows * g.window * g.group_outputs * g.reduction
    threads = threads if products >= _BUSY_PRODUCTS or g.reduction * g.out_channels >= _BUSY_WEIGHTS else 1
    images = _lanes_are_images(g, x_stride, y_stride, threads, lanes)
    return Choice(Kernel.FORWARD_IMAGES if images else Kernel.FORWARD_DIRECT, threads)


def _windows(g: Geometry) -> int:
    return g.batch * g.settings.groups * g.pooled_height * g.pooled_width


def backward_kernel(g: Geometry, needs: Needs) -> Kernel:
    """What computes the gradients that are asked for."""
    known = g.kernel in ((3, 3), (5, 5))
    few = needs[1] and not needs[0] and _plain_pool(g) and known and g.reduction <= _FEW_PRODUCTS
    return Kernel.BACKWARD_FEW if few else Kernel.BACKWARD


def why_moments_lose(g: Geometry, dx: bool, lanes: int) -> str:
    """In words why batch statistics from the moments of patches are no faster than torch's layers, or nothing."""
    if _windows_overlap(g):
        return _OVERLAP
    if dx:
        return "x has a gradient, which takes two dense convolutions more"
    outputs = g.batch * g.out_channels * g.conv_height * g.conv_width
    moments = _moment_products(g, lanes // 2)
    if _OUTPUT * outputs - moments > _CALLS:
        return ""
    if moments > _OUTPUT * outputs / 2:
        return f"the moments of its patches cost {moments / (outputs * g.reduction):.1f} convolutions"
    return f"with {outputs} conv outputs torch's norm takes less time than what calls the kernels"


def _moment_products(g: Geometry, images: int) -> float:
    """What patch_moments.h computes, with so many images in a vector, in products of the convolution.

    Sums of products are double, half as many to a vector as the convolution's; and each block of sums costs as much as
    _BLOCK products besides, in each zone.
    """
    (distances, zones, reach), (across, zones_across, reach_across) = (_moment_sums(g, axis) for axis in (0, 1))
    sums = distances * across * g.group_channels**2 / 2 * g.settings.groups
    positions = (g.conv_height + reach) * (g.conv_width + reach_across)
    chunks = -(-g.batch // images)
    return chunks * sums * (2 * images * positions + _BLOCK / _BLOCK_SUMS * zones * zones_across)


def _moment_sums(g: Geometry, axis: int) -> tuple[int, int, int]:
    """Along one axis: the distances of two taps that differ, the zones, and how far taps reach."""
    stride, dilation = g.settings.stride[axis], g.settings.dilation[axis]
    taps = [(k * dilation % stride, k * dilation // stride) for k in range(g.kernel[axis])]
    distances = {(phase, other, to - at) for phase, at in taps for other, to in taps}
    return len(distances), 2 * len({at for _, at in taps}) - 1, taps[-1][1]


def _plain_pool(g: Geometry) -> bool:
    """The 2x2 window that kernels with pooling in registers are written for, all of it in the conv output."""
    s = g.settings
    window = (s.pool_kernel, s.pool_stride, s.pool_padding, s.pool_dilation) == ((2, 2), (2, 2), (0, 0), (1, 1))
    return window and g.pooled_height * 2 <= g.conv_height and g.pooled_width * 2 <= g.conv_width


def _takes_winograd(g: Geometry) -> bool:
    """What forward_winograd is written for, and enough input channels."""
    unit = (g.kernel, g.settings.stride, g.settings.dilation) == ((3, 3), (1, 1), (1, 1))
    return unit and _plain_pool(g) and g.group_channels >= _WINOGRAD_CHANNELS


def _lanes_are_images(g: Geometry, x_stride: Strides, y_stride: Strides, threads: int, lanes: int) -> bool:
    """Whether forward_images serves, and is faster than output channels as lanes.

    Measured at batch 128, times of the two in ms: 1 to 32 channels 1.22 and 1.98 for NCHW, 1.17 and 0.94 for
    channels_last (whose result needs no transposing there); 1 to 6 channels 0.68 and 2.16, 0.66 and 1.68; 6 to 16
    channels 0.74 and 1.28, 0.72 and 1.10 (one vector of channels leaves forward_direct waiting for loads); 3 to 32
    channels 3.7 and 4.9, 3.9 and 2.9. A vector of images that two threads have to share is turned in pieces: 1 to 32
    channels 112 us for 16 images, where one thread takes 74, and forward_direct on two threads 49.
    """
    vectors = _image_vectors(g, lanes)
    innermost = x_stride[1] == 1 and x_stride[3] == g.in_channels and g.settings.groups == 1
    in_one_piece = innermost or x_stride[3] == 1  # the rows of an image
    if not vectors or not in_one_piece:
        return False
    if g.group_outputs <= lanes:
        return True
    return y_stride[1] != 1 and vectors >= threads


def _image_vectors(g: Geometry, lanes: int) -> int:
    """How many vectors of images forward_images fills, all groups together; 0 where it does not fill or pool them."""
    vectors = -(-g.batch // lanes)
    return vectors * g.settings.groups if _plain_pool(g) and 3 * g.batch >= 2 * vectors * lanes else 0
