"""torch's own three calls: the oracle of the tests, the baseline of the benchmarks, the fallback of `auto`."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from convpool.cost import Counts, torch_forward
from convpool.geometry import Geometry, Settings, has_empty_windows, pooled_size
from convpool.layout import has_channels_last_strides, memory_format
from convpool.protocol import Use
from convpool.torch_private import are_functorch_transforms_active

PLANS = PLAIN, INNERMOST = "plain", "channels_last"  # of torch's layers: in x's memory format, or in that one
_MARGIN = 1.6  # by which copying x must pay in estimated time: people compare with torch's layers as they come


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """`conv2d` under the settings' padding, which torch takes only when it is symmetric."""
    top, bottom, left, right = settings.padding
    if not settings.symmetric_padding:
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    if _skips_pixels(x, weight, settings):
        padded = F.pad(x, (left, left, top, top)) if top or left else x
        read = padded[..., :: settings.stride[0], :: settings.stride[1]]
        z = F.conv2d(read, weight, bias, groups=settings.groups)
    elif _is_wrong_in_channels_last(x, weight, left, settings):
        plain = _contiguous_strides(x), _contiguous_strides(weight)
        z = F.conv2d(*plain, bias, settings.stride, (top, left), settings.dilation, settings.groups)
    else:
        return F.conv2d(x, weight, bias, settings.stride, (top, left), settings.dilation, settings.groups)
    if x.dim() == 3 or are_functorch_transforms_active():  # one image or a batch of tensors: of no format
        return z
    return z.contiguous(memory_format=memory_format(x, weight, settings))


def _skips_pixels(x: Tensor, weight: Tensor, settings: Settings) -> bool:
    """Whether the convolution steps over pixels that none of its positions reads, a kernel of 1x1 with a stride.

    There oneDNN's weight gradient (torch 2.14, channels_last, few channels, unread pixels at a row's end) reads and
    writes beyond its memory, which ends the process.
    """
    one_tap = weight.shape[-2:] == (1, 1) and settings.stride != (1, 1)
    return one_tap and x.device.type == "cpu" and x.dtype != torch.float64 and x.layout is torch.strided


def _is_wrong_in_channels_last(x: Tensor, weight: Tensor, padding: int, settings: Settings) -> bool:
    """Whether the convolution steps over columns and makes one: found with torch 2.14's oneDNN in channels_last.

    With AVX-512 the value is wrong where x has one channel: of 144,000 calls all wrong ones lie in that class.
    """
    if settings.stride[1] == 1 or x.device.type != "cpu" or x.dtype == torch.float64 or x.layout is not torch.strided:
        return False
    span = (weight.shape[3] - 1) * settings.dilation[1] + 1
    if x.shape[-1] + 2 * padding >= span + settings.stride[1]:
        return False
    return any(t.stride() != t.new_empty(t.shape, device="meta").stride() for t in (x, weight))


def _contiguous_strides(t: Tensor) -> Tensor:
    """t with a contiguous tensor's strides; `contiguous()` would leave one channel with those of channels_last."""
    return t.flatten(1).unflatten(1, t.shape[1:])


def pool(z: Tensor, settings: Settings) -> Tensor:
    """`max_pool2d` under the settings: -inf, without a gradient, of a window that holds no element of z."""
    s, padding, ceil_mode = settings, settings.pool_padding, settings.ceil_mode
    if has_empty_windows(settings, z.shape[-2:]):
        z, padding, ceil_mode = _padded_for_all_windows(z, settings), (0, 0), False
    return F.max_pool2d(z, s.pool_kernel, s.pool_stride, padding, s.pool_dilation, ceil_mode)


def _padded_for_all_windows(z: Tensor, settings: Settings) -> Tensor:
    """z with all that its windows look at: torch's backward writes out of bounds where a window finds no element."""
    padding: list[int] = []
    for axis in (1, 0):  # as F.pad wants them, the last one first
        windows, size = pooled_size(settings, z.shape[-2:])[axis], z.shape[axis - 2]
        before, span = settings.pool_padding[axis], (settings.pool_kernel[axis] - 1) * settings.pool_dilation[axis] + 1
        padding += [before, max(0, (windows - 1) * settings.pool_stride[axis] + span - before - size)]
    lowest = -torch.inf if z.is_floating_point() else torch.iinfo(z.dtype).min
    return F.pad(z, padding, value=lowest)


def pool_with_positions(z: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The pooled maxima, and the index of each window's winner in its plane of z (int64)."""
    s = settings
    return F.max_pool2d_with_indices(z, s.pool_kernel, s.pool_stride, s.pool_padding, s.pool_dilation, s.ceil_mode)


def relu_then_pool(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """The definition: `max_pool2d(relu(conv2d(x, weight, bias)))`."""
    return _in_format(pool(F.relu(conv(x, weight, bias, settings)), settings), settings)


def pool_then_relu(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """Same value and gradients, for ReLU is monotone; the ReLU then handles a window's worth fewer elements.

    One exception: of a window without a position (`Geometry.empty_windows`) torch's max-pool makes -inf, ReLU then 0.
    """
    return _in_format(F.relu(pool(conv(x, weight, bias, settings), settings)), settings)


def planned(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str) -> Tensor:
    """What `auto` runs where no kernel serves: pool before ReLU, by the plan `INNERMOST` in channels_last.

    The result has eager's format by either plan.
    """
    settings = geometry.settings
    if geometry.empty_windows or _is_in_both_formats(x, geometry):
        return relu_then_pool(x, weight, bias, settings)
    # Under torch.func's transforms a tensor may be a batch of them, which has no memory format to ask for.
    if plan != INNERMOST or x.layout is not torch.strided or are_functorch_transforms_active():
        return pool_then_relu(x, weight, bias, settings)
    y = pool_then_relu(x.contiguous(memory_format=torch.channels_last), weight, bias, settings)
    return y.contiguous(memory_format=memory_format(x, weight, settings))


def _is_in_both_formats(x: Tensor, geometry: Geometry) -> bool:
    """Whether x is in channels_last and the conv output has one channel, or one window: strides then fit both formats,
    and torch's max-pool is faster behind a ReLU, which settles it."""
    one = geometry.out_channels == 1 or (geometry.pooled_height, geometry.pooled_width) == (1, 1)
    return one and x.layout is torch.strided and x.dim() == 4 and has_channels_last_strides(x)


def plans(dtype: torch.dtype, device: torch.device) -> tuple[str, ...]:
    """Those that differ in speed."""
    return PLANS if device.type == "cuda" or (device.type == "cpu" and dtype == torch.float32) else (PLAIN,)


def plan(geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use) -> str:
    """Which of the plans `auto` takes, by a written rule."""
    if device.type != "cpu" or dtype != torch.float32 or use.channels_last:
        return PLAIN
    if use.training and geometry.group_channels <= 4:  # whose weights' gradient is slower so
        return PLAIN
    n, threads = Counts.of(geometry), use.threads
    as_it_is, innermost = (
        torch_forward(n, threads, channels_last=False, innermost=innermost) for innermost in (False, True)
    )
    return INNERMOST if _MARGIN * innermost < as_it_is else PLAIN


def bound(x: Tensor, weight: Tensor, geometry: Geometry, plan: str) -> Callable[..., Tensor]:
    """`planned` for tensors whose sizes and strides are those of these, without what is the same for all of them.

    Nothing but autograd may have to see the calls (`torch_private.unseen`).
    """
    s = geometry.settings
    (top, _, left, _), innermost = s.padding, plan == INNERMOST
    given = x.contiguous(memory_format=torch.channels_last) if innermost else x
    odd = _skips_pixels(given, weight, s) or _is_wrong_in_channels_last(given, weight, left, s)
    if odd or not s.symmetric_padding or geometry.empty_windows:
        return lambda x, weight, bias: planned(x, weight, bias, geometry, plan)
    result_format = memory_format(x, weight, s)
    conv_format = torch.channels_last if innermost else memory_format(x, weight, s._replace(contiguous_output=False))
    conv_options = s.stride, (top, left), s.dilation, s.groups
    pool_options = s.pool_kernel, s.pool_stride, s.pool_padding, s.pool_dilation, s.ceil_mode
    relu_first = _is_in_both_formats(x, geometry)
    settled = False  # whether torch is known to return both formats by itself: to ask costs as much as a short call

    def layers(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        nonlocal settled
        if innermost:
            x = x.contiguous(memory_format=torch.channels_last)
        z = torch.conv2d(x, weight, bias, *conv_options)
        restrided = z if settled else z.contiguous(memory_format=conv_format)
        if relu_first:
            y = torch.max_pool2d(torch.relu(restrided), *pool_options)
        else:
            y = torch.relu(torch.max_pool2d(restrided, *pool_options))
        if settled:
            return y
        result = y.contiguous(memory_format=result_format)
        settled = restrided is z and result is y
        return result

    return layers


def _in_format(y: Tensor, settings: Settings) -> Tensor:
    return y.contiguous() if settings.contiguous_output else y
