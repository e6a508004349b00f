"""The table of shapes that tests, sanitizers, the self-check and the benchmarks share.

A case is small, so that even an interpreter gets through all of them; where people run the layer at another size,
`full` says so, and `at_full_size()` gives that case to benchmarks.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from convpool.geometry import Geometry, Pair, Settings, make_settings


@dataclass(frozen=True)
class Case:
    """One layer: x (batch, in_channels, *size), weight (out_channels, in_channels / groups, *kernel), options."""

    name: str
    batch: int
    in_channels: int
    size: Pair
    out_channels: int
    kernel: Pair
    options: dict[str, Any] = field(default_factory=dict)
    bias: bool = True
    full: tuple[int, int] | None = None  # batch, height (= width) at which the layer is used

    @property
    def settings(self) -> Settings:
        return make_settings(self.kernel, **self.options)

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.in_channels, *self.size

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.in_channels // self.settings.groups, *self.kernel

    @property
    def geometry(self) -> Geometry:
        return Geometry.of(self.x_shape, self.weight_shape, self.settings)

    def at_full_size(self) -> "Case":
        if self.full is None:
            return self
        batch, size = self.full
        return replace(self, batch=batch, size=(size, size), full=None)

    def __str__(self) -> str:
        return self.name


def _case(
    name: str,
    batch: int,
    in_channels: int,
    size: int | Pair,
    out_channels: int,
    kernel: int | Pair,
    *,
    bias: bool = True,
    full: tuple[int, int] | None = None,
    **options: Any,
) -> Case:
    pairs = [(value, value) if isinstance(value, int) else value for value in (size, kernel)]
    return Case(name, batch, in_channels, pairs[0], out_channels, pairs[1], options, bias, full)


_POOL32: dict[str, Any] = {"pool_kernel_size": 3, "pool_stride": 2}
_POOL321: dict[str, Any] = {**_POOL32, "pool_padding": 1}
_POOL32_CEIL: dict[str, Any] = {**_POOL32, "ceil_mode": True}

# The layers of the models in mnistfast, at the batch sizes they train with.
SMALL_NETWORKS = (
    _case("cnn-1", 4, 1, 28, 32, 3, full=(128, 28)),
    _case("cnn-2", 3, 32, 13, 64, 3, full=(128, 13)),
    _case("lenet5-1", 4, 1, 28, 6, 5, padding=2, full=(128, 28)),
    _case("lenet5-2", 4, 6, 14, 16, 5, full=(128, 14)),
    _case("fast-1", 4, 1, 28, 24, 5, full=(256, 28)),
    _case("fast-2", 4, 24, 12, 32, 3, full=(256, 12)),
    _case("cifar-1", 3, 3, 32, 32, 3, full=(128, 32)),
    _case("cifar-2", 3, 32, 15, 64, 3, full=(128, 15)),
    _case("pytorch-example-2", 2, 32, 26, 64, 3, full=(64, 26)),
)

# Pooled layers of networks for photographs.
LARGE_NETWORKS = (
    _case("vgg-1", 1, 64, 12, 64, 3, padding=1, full=(2, 224)),
    _case("vgg-2", 1, 128, 8, 128, 3, padding=1, full=(2, 112)),
    _case("vgg-3", 1, 256, 6, 256, 3, padding=1, full=(2, 56)),
    _case("vgg-5", 1, 512, 4, 512, 3, padding=1, full=(4, 14)),
    _case("alexnet-1", 2, 3, 63, 64, 11, stride=4, padding=2, full=(4, 224), **_POOL32),
    _case("alexnet-2", 2, 64, 13, 192, 5, padding=2, full=(4, 27), **_POOL32),
    _case("alexnet-5", 2, 256, 7, 256, 3, padding=1, full=(4, 13), **_POOL32),
    _case("resnet-stem", 2, 3, 32, 64, 7, stride=2, padding=3, bias=False, full=(4, 224), **_POOL321),
    _case("googlenet-stem", 2, 3, 30, 64, 7, stride=2, padding=3, bias=False, full=(4, 224), **_POOL32_CEIL),
    _case("googlenet-2", 2, 64, 12, 192, 3, padding=1, bias=False, full=(4, 56), **_POOL32_CEIL),
    _case("squeezenet-stem", 2, 3, 31, 64, 3, stride=2, full=(4, 224), **_POOL32_CEIL),
    _case("shufflenet-stem", 2, 3, 32, 24, 3, stride=2, padding=1, bias=False, full=(4, 224), **_POOL321),
    _case("inception-4", 1, 80, 11, 192, 3, bias=False, full=(4, 73), **_POOL32),
)

# The layers with a norm in training mode that are timed: of small networks for digits and for few-shot learning, and
# the stem of ResNet.
BATCH_NORM = (
    _case("cnn2-bn-1", 4, 1, 28, 32, 3, bias=False, full=(128, 28)),
    _case("few-shot-bn-1", 2, 3, 21, 64, 3, padding=1, bias=False, full=(25, 84)),
    _case("cifar-bn-1", 3, 3, 16, 32, 3, padding=1, bias=False, full=(128, 32)),
    _case("resnet-stem-bn", 2, 3, 32, 64, 7, stride=2, padding=3, bias=False, full=(8, 224), **_POOL321),
)

# What else torch accepts, one property at a time and then mixed.
EDGES = (
    _case("batch-0", 0, 3, 9, 4, 3),
    _case("batch-1", 1, 3, 9, 4, 3),
    _case("batch-17", 17, 2, 8, 5, 3),
    _case("batch-19-padded", 19, 3, 10, 7, 5, padding=2),
    _case("batch-33-groups", 33, 4, (11, 14), 18, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
    _case("batch-34-small", 34, 16, 9, 20, 3, padding=1),
    _case("batch-34-one-window", 34, 16, 5, 20, 3),
    _case("batch-34-one-window-padded", 34, 20, 2, 33, 3, padding=1),
    _case("one-channel-each", 2, 1, 8, 1, 3),
    _case("one-output", 2, 5, 9, 1, 3, padding=1),
    _case("no-bias", 2, 4, 10, 8, 3, bias=False),
    _case("channels-5-7", 2, 5, 10, 7, 3, padding=1),
    _case("channels-17-33", 2, 17, 9, 33, 3, padding=1),
    _case("channels-16-48", 2, 16, 10, 48, 3),
    _case("kernel-1", 2, 6, 9, 10, 1),
    _case("kernel-2", 2, 4, 11, 6, 2),
    _case("kernel-4", 2, 3, 11, 6, 4, padding=2),
    _case("kernel-5", 2, 16, 12, 20, 5, padding=2),
    _case("kernel-7", 1, 4, 15, 12, 7),
    _case("products-1568", 2, 32, 11, 20, 7, padding=3),
    _case("products-1568-groups", 1, 64, 9, 40, 7, padding=3, groups=2, **_POOL321),
    _case("kernel-1x5", 2, 3, (8, 13), 6, (1, 5)),
    _case("kernel-5x1", 2, 3, (13, 8), 6, (5, 1), padding=(2, 0)),
    _case("same-odd", 2, 3, 11, 6, 3, padding="same"),
    _case("same-even", 2, 3, 10, 6, 4, padding="same"),
    _case("same-even-dilated", 2, 3, 12, 6, (2, 4), padding="same", dilation=(3, 1)),
    _case("valid", 2, 3, 10, 6, 3, padding="valid"),
    _case("padding-wider-than-kernel", 2, 3, 7, 5, 3, padding=4),
    _case("columns-in-the-padding", 3, 4, (7, 2), 6, 2, stride=3, padding=4, pool_kernel_size=1, pool_stride=3),
    _case("padding-alone", 2, 3, (9, 1), 6, 1, stride=(1, 3), padding=2, pool_kernel_size=1, pool_stride=(1, 2)),
    _case("padding-1x2", 2, 3, (9, 10), 6, 3, padding=(1, 2)),
    _case("stride-2", 2, 8, 17, 16, 3, stride=2),
    _case("stride-2-padded", 2, 16, 16, 32, 3, stride=2, padding=1),
    _case("stride-3-kernel-2", 2, 3, 19, 6, 2, stride=3),
    _case("stride-1x2", 2, 3, (12, 19), 6, 3, stride=(1, 2)),
    _case("dilation-2", 2, 4, 13, 8, 3, dilation=2),
    _case("dilation-2-padded", 2, 4, 10, 8, 3, dilation=2, padding=2),
    _case("dilation-1x3", 2, 4, (9, 14), 8, 3, dilation=(1, 3)),
    _case("stride-and-dilation", 2, 3, 18, 6, 3, stride=2, dilation=2, padding=2),
    _case("groups-2", 2, 8, 10, 12, 3, groups=2),
    _case("groups-4-stride-2", 2, 8, 15, 16, 3, groups=4, stride=2, padding=1),
    _case("depthwise", 2, 8, 11, 8, 3, groups=8, padding=1),
    _case("depthwise-times-3", 2, 5, 11, 15, 3, groups=5),
    _case("depthwise-32-kernel-5", 2, 32, 12, 32, 5, groups=32, padding=2, bias=False),
    _case("odd-13x9", 2, 3, (13, 9), 6, 3),
    _case("odd-row-dropped", 2, 16, 13, 32, 3),
    _case("tall", 2, 3, (40, 5), 6, 3),
    _case("wide", 2, 3, (5, 70), 6, 3),
    _case("one-window", 2, 6, 4, 10, 3),
    _case("pool-1", 2, 4, 8, 6, 3, pool_kernel_size=1),
    _case("pool-3", 2, 4, 12, 6, 3, pool_kernel_size=3),
    _case("pool-2x3", 2, 4, (9, 12), 6, 3, pool_kernel_size=(2, 3)),
    _case("pool-3x1-stride-1x2", 2, 4, 10, 6, 3, pool_kernel_size=(3, 1), pool_stride=(1, 2)),
    _case("pool-overlap", 2, 6, 12, 10, 3, **_POOL32),
    _case("pool-overlap-much", 2, 3, 9, 5, 3, pool_kernel_size=3, pool_stride=1),
    _case("pool-overlap-padded", 2, 6, 12, 10, 3, padding=1, **_POOL321),
    _case("pool-gaps", 2, 4, 15, 6, 3, pool_kernel_size=2, pool_stride=3),
    _case(
        "pool-gaps-padded", 2, 4, (7, 6), 6, (1, 2), padding="same", pool_kernel_size=1, pool_stride=2, ceil_mode=True
    ),
    _case("pool-padded", 2, 4, 9, 6, 3, pool_padding=1),
    _case("pool-dilated", 2, 4, 13, 6, 3, pool_kernel_size=2, pool_stride=2, pool_dilation=2),
    _case("pool-dilated-overlap", 2, 3, 14, 5, 3, pool_kernel_size=3, pool_stride=2, pool_padding=1, pool_dilation=2),
    _case("pool-all", 2, 6, 10, 8, 3, pool_kernel_size=8),
    _case("pool-255", 1, 2, (17, 19), 3, 3, pool_kernel_size=(15, 17)),
    _case("ceil", 2, 4, 13, 6, 3, ceil_mode=True),
    _case("ceil-overlap", 2, 4, 12, 6, 3, **_POOL32_CEIL),
    _case("ceil-padded", 2, 4, 12, 6, 3, pool_kernel_size=3, pool_stride=2, pool_padding=1, ceil_mode=True),
    _case("ceil-window-larger-than-map", 2, 3, 4, 5, 3, pool_kernel_size=3, ceil_mode=True),
    _case("contiguous-output", 2, 4, 11, 6, 3, contiguous_output=True),
    _case("contiguous-output-16-32", 2, 16, 9, 32, 3, padding=1, contiguous_output=True),
    _case("contiguous-output-overlap", 2, 6, 12, 10, 3, padding=1, contiguous_output=True, **_POOL321),
    _case("mixed-1", 2, 6, (14, 11), 9, (3, 2), stride=(2, 1), padding=(1, 0), groups=3, **_POOL32_CEIL),
    _case("mixed-2", 3, 4, (11, 16), 10, (2, 3), dilation=(2, 1), padding=(1, 2), groups=2, pool_kernel_size=(3, 2)),
    _case("mixed-3", 2, 12, 13, 24, 3, padding=1, groups=2, bias=False, **_POOL321),
)

CASES = SMALL_NETWORKS + LARGE_NETWORKS + EDGES


_BY_NAME = {case.name: case for case in CASES}


def by_name(name: str) -> Case:
    """The case of that name.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]
