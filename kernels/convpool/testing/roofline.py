"""How near a layer comes to what the machine can do: the work it cannot avoid, and the peaks that the machine reached.

Williams, Waterman and Patterson 2009, "Roofline": a time is bounded from below by the arithmetic over the peak rate and
by the traffic over the bandwidth, whichever is longer. Both peaks are measured where the layer is, not read off a data
sheet: the rate with a large matrix product, the bandwidth with copies of as many bytes as the layer touches, so that a
layer that lives in a cache is held to the cache.
"""

from dataclasses import dataclass
from functools import cache

import torch

from convpool.geometry import Geometry
from convpool.testing import timing

_SECONDS = 0.2  # of measuring a peak: twice the rounds change it by less than two runs differ
_MATRIX = 1536  # rows and columns: large enough for the peak, small enough (28 MB, 7 GFLOP) for a slow core


@dataclass(frozen=True)
class Work:
    """What a layer has to do at least: floating-point operations (a product and its sum are two), bytes to and fro."""

    flops: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes


def work(g: Geometry, dtype: torch.dtype, *, dx: bool, backward: bool) -> Work:
    """The work of a fused layer's forward pass, or of its forward and backward pass in training.

    Forward: a conv output each, by direct summation (Winograd's algorithm needs fewer products, so it can be faster
    than this bound); x, weight and bias are read once, y and the winners (a byte each) written once. Backward: only a
    window's winner has a gradient, for dw and, where x needs one, for dx; everything read or written once.
    """
    size = dtype.itemsize
    x = size * g.batch * g.in_channels * g.height * g.width
    outputs = g.batch * g.out_channels * g.pooled_height * g.pooled_width
    weight = size * g.out_channels * (g.reduction + 1)  # with its bias
    flops = 2 * g.batch * g.out_channels * g.conv_height * g.conv_width * g.reduction
    traffic = x + weight + size * outputs
    if backward:
        flops += 2 * outputs * g.reduction * (2 if dx else 1)
        winners = 2 * outputs  # written forward, read backward
        traffic += winners + size * outputs + x + weight + (x + weight if dx else 0)
    return Work(flops, traffic)


@dataclass(frozen=True)
class Peaks:
    """Rates that were measured: operations and bytes (read and written) a second."""

    flops: float
    bandwidth: float

    def bound(self, work: Work) -> float:
        """Seconds that the work takes at least."""
        return max(work.flops / self.flops, work.bytes / self.bandwidth)


def peaks(device: torch.device, dtype: torch.dtype, touched: int) -> Peaks:
    """The peaks for a layer that touches so many bytes, measured once for each power of two."""
    return Peaks(_peak_flops(device, dtype, torch.get_num_threads()), peak_bandwidth(device, touched))


def peak_bandwidth(device: torch.device, touched: int) -> float:
    """Bytes a second, read and written together, of copying within so many bytes (up to the next power of two)."""
    return _peak_bandwidth(device, max(16, (touched - 1).bit_length()), torch.get_num_threads())


@cache
def _peak_flops(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    a, b, out = (torch.ones(_MATRIX, _MATRIX, dtype=dtype, device=device) for _ in range(3))
    best = timing.compare({"product": [lambda: torch.mm(a, b, out=out)]}, device, _SECONDS)["product"]
    return 2 * _MATRIX**3 / best.low


@cache
def _peak_bandwidth(device: torch.device, log2_bytes: int, threads: int) -> float:
    source = torch.ones(2**log2_bytes // 8, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = timing.compare({"copy": [lambda: target.copy_(source)]}, device, _SECONDS)["copy"]
    return 2 * source.nbytes / best.low
