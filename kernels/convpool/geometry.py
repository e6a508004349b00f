"""Every size and offset of one call, computed and refused in one place."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

Pair: TypeAlias = tuple[int, int]

MAX_WINDOW = 255  # a winner is stored as one byte: offsets 0..254, and 255 for "dead"
DEAD = 255


class Settings(NamedTuple):
    """What a call fixes besides its tensors, normalised."""

    stride: Pair
    padding: tuple[int, int, int, int]  # top, bottom, left, right: "same" with an even kernel is not symmetric
    dilation: Pair
    groups: int
    pool_kernel: Pair
    pool_stride: Pair
    pool_padding: Pair
    pool_dilation: Pair
    ceil_mode: bool
    contiguous_output: bool

    def pack(self) -> tuple[int, ...]:
        """The 19 numbers in order: one list is what an operator takes in 6 us, nine arguments take it 32."""
        return (
            *self.stride,
            *self.padding,
            *self.dilation,
            self.groups,
            *self.pool_kernel,
            *self.pool_stride,
            *self.pool_padding,
            *self.pool_dilation,
            int(self.ceil_mode),
            int(self.contiguous_output),
        )

    @classmethod
    def unpack(cls, v: Sequence[int]) -> "Settings":
        """The inverse of `pack`."""
        return cls(
            stride=(v[0], v[1]),
            padding=(v[2], v[3], v[4], v[5]),
            dilation=(v[6], v[7]),
            groups=v[8],
            pool_kernel=(v[9], v[10]),
            pool_stride=(v[11], v[12]),
            pool_padding=(v[13], v[14]),
            pool_dilation=(v[15], v[16]),
            ceil_mode=bool(v[17]),
            contiguous_output=bool(v[18]),
        )

    @property
    def symmetric_padding(self) -> bool:
        top, bottom, left, right = self.padding
        return top == bottom and left == right


class Geometry(NamedTuple):
    """Sizes of `max_pool2d(relu(conv2d(x, weight)))`.

    Shapes: x (batch, in_channels, height, width), weight (out_channels, in_channels / groups, *kernel),
    conv output (batch, out_channels, conv_height, conv_width), result (batch, out_channels, pooled_height,
    pooled_width).
    Pooled position (i, j) looks at conv rows `i * pool_stride[0] - pool_padding[0] + a * pool_dilation[0]` for
    a < pool_kernel[0] (columns alike); conv row r reads rows `r * stride[0] - padding_top + k * dilation[0]` of x.
    """

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: Pair
    settings: Settings
    conv_height: int
    conv_width: int
    pooled_height: int
    pooled_width: int

    @staticmethod
    def of(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], settings: Settings) -> "Geometry":
        """Sizes for a batched input; ValueError names the argument, its value and what is allowed."""
        batch, in_channels, height, width = x_shape
        out_channels, group_channels, *kernel = weight_shape
        _check_channels(in_channels, out_channels, group_channels, settings.groups)
        top, bottom, left, right = settings.padding
        conv_height = _conv_size("height", height, top + bottom, kernel[0], settings.stride[0], settings.dilation[0])
        conv_width = _conv_size("width", width, left + right, kernel[1], settings.stride[1], settings.dilation[1])
        pooled_height, pooled_width = pooled_size(settings, (conv_height, conv_width))
        return Geometry(
            batch,
            in_channels,
            height,
            width,
            out_channels,
            (kernel[0], kernel[1]),
            settings,
            conv_height,
            conv_width,
            pooled_height,
            pooled_width,
        )

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.in_channels, self.height, self.width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.group_channels, *self.kernel

    @property
    def conv_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.out_channels, self.conv_height, self.conv_width

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.out_channels, self.pooled_height, self.pooled_width

    @property
    def group_channels(self) -> int:
        """Input channels that one output channel reads."""
        return self.in_channels // self.settings.groups

    @property
    def group_outputs(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.settings.groups

    @property
    def window(self) -> int:
        """Positions in a pool window."""
        return self.settings.pool_kernel[0] * self.settings.pool_kernel[1]

    @property
    def reduction(self) -> int:
        """Products summed into one conv output: the K of the implicit matrix product."""
        return self.group_channels * self.kernel[0] * self.kernel[1]

    @property
    def obstacle(self) -> str:
        """Why no backend serves the call: what one byte for each window cannot say. Empty if there is nothing."""
        if self.window > MAX_WINDOW:
            return f"a pool window of {self.window} positions exceeds the {MAX_WINDOW} that one byte can name"
        return "a pool window holds no conv output at all" if self.empty_windows else ""

    @property
    def empty_windows(self) -> bool:
        """Whether some pool window holds no conv output at all."""
        return has_empty_windows(self.settings, (self.conv_height, self.conv_width))


def make_settings(
    kernel: tuple[int, ...],
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    pool_kernel_size: int | Pair = 2,
    pool_stride: int | Pair | None = None,
    pool_padding: int | Pair = 0,
    pool_dilation: int | Pair = 1,
    ceil_mode: bool = False,
    contiguous_output: bool = False,
) -> Settings:
    """Normalise a call's arguments as torch does: an int counts for both axes, `pool_stride=None` is the window.

    Raises:
        TypeError: an argument is neither an int nor a pair of ints.
        ValueError: a value is out of range, or `padding="same"` goes with a stride.
    """
    strides = _pair("stride", stride, least=1)
    dilations = _pair("dilation", dilation, least=1)
    window = _pair("pool_kernel_size", pool_kernel_size, least=1)
    return Settings(
        stride=strides,
        padding=_paddings(padding, kernel, strides, dilations),
        dilation=dilations,
        groups=_int("groups", groups, least=1),
        pool_kernel=window,
        pool_stride=window if pool_stride is None else _pair("pool_stride", pool_stride, least=1),
        pool_padding=_pair("pool_padding", pool_padding, least=0),
        pool_dilation=_pair("pool_dilation", pool_dilation, least=1),
        ceil_mode=_bool("ceil_mode", ceil_mode),
        contiguous_output=_bool("contiguous_output", contiguous_output),
    )


def pooled_size(settings: Settings, conv_size: Sequence[int]) -> Pair:
    """Height and width of the result for a conv output of that size; ValueError if no window fits."""
    return _pooled_size("height", conv_size[0], settings, 0), _pooled_size("width", conv_size[1], settings, 1)


def has_empty_windows(settings: Settings, conv_size: Sequence[int]) -> bool:
    """Whether some pool window of a conv output of that size holds none of its positions; False where no window fits.

    It then begins in the padding and steps over the whole map; a window that begins in the map holds what it begins at.
    """
    if settings.pool_padding == (0, 0) or settings.pool_dilation == (1, 1):
        return False
    try:
        pooled = pooled_size(settings, conv_size)
    except ValueError:
        return False
    axes = zip(settings.pool_padding, settings.pool_stride, settings.pool_dilation, conv_size, pooled, strict=True)
    return any(
        window < windows and (window * stride - padding) % dilation >= size  # the first position that is not negative
        for padding, stride, dilation, size, windows in axes
        for window in range(-(-padding // stride))
    )


def _bool(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def _int(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or hasattr(value, "__len__"):  # an array has both
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    if isinstance(value, tuple | list):
        if len(value) == 1:
            value = (value[0], value[0])
        if len(value) != 2:
            raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
        return _int(name, value[0], least), _int(name, value[1], least)
    value = _int(name, value, least)
    return value, value


def _paddings(
    padding: int | Pair | str, kernel: tuple[int, ...], stride: Pair, dilation: Pair
) -> tuple[int, int, int, int]:
    if not isinstance(padding, str):
        vertical, horizontal = _pair("padding", padding, least=0)
        return vertical, vertical, horizontal, horizontal
    if padding == "valid":
        return 0, 0, 0, 0
    if padding != "same":
        raise ValueError(f"padding must be an int, a pair of ints, 'same' or 'valid', got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got stride={stride}")
    vertical, horizontal = ((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
    return vertical // 2, vertical - vertical // 2, horizontal // 2, horizontal - horizontal // 2


def _check_channels(in_channels: int, out_channels: int, group_channels: int, groups: int) -> None:
    if out_channels == 0 or group_channels == 0:
        raise ValueError(f"weight must not be empty, got {out_channels} output and {group_channels} input channels")
    if in_channels != group_channels * groups:
        raise ValueError(
            f"x has {in_channels} channels, but weight takes {group_channels * groups} "
            f"(weight.shape[1]={group_channels} times groups={groups})"
        )
    if out_channels % groups:
        raise ValueError(f"groups must divide the {out_channels} output channels of weight, got groups={groups}")


def _conv_size(axis: str, size: int, padding: int, kernel: int, stride: int, dilation: int) -> int:
    span = (kernel - 1) * dilation + 1
    if kernel < 1 or span > size + padding:
        raise ValueError(
            f"weight of {axis} {kernel} (dilation {dilation}, so {span} positions) does not fit "
            f"x of {axis} {size} with {padding} of padding"
        )
    return (size + padding - span) // stride + 1


def _pooled_size(axis: str, size: int, settings: Settings, i: int) -> int:
    """torch's rule (ATen/native/Pool.h, pooling_output_shape): in ceil mode the last window must start inside."""
    kernel, stride = settings.pool_kernel[i], settings.pool_stride[i]
    padding, dilation = settings.pool_padding[i], settings.pool_dilation[i]
    span = (kernel - 1) * dilation + 1
    if padding > kernel // 2:
        raise ValueError(f"pool_padding must be at most half of the pool window's {axis} {kernel}, got {padding}")
    room = size + 2 * padding - span
    pooled = (room + (stride - 1 if settings.ceil_mode else 0)) // stride + 1
    if settings.ceil_mode and (pooled - 1) * stride >= size + padding:
        pooled -= 1
    if (room < 0 and not settings.ceil_mode) or pooled < 1:
        raise ValueError(
            f"pool window of {axis} {span} is larger than the conv output's {axis} {size} with {2 * padding} of padding"
        )
    return pooled
