"""The backend `reference`: the fused plan's arithmetic in plain torch, position by position; slow, meant to be read.

All sums are float64, in which products of two float32 numbers are exact: added one by one in float32, the thousands of
terms of a gradient of x are three times as far off as torch's, which are added in blocks.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from convpool import eager
from convpool.geometry import DEAD, Geometry
from convpool.layout import new_code, new_gradients, new_output
from convpool.protocol import BAD_CODES, ORDINARY, Moments, Needs, Plan, Use

_CHUNK = 1 << 21  # gathered elements at a time: 16 MiB


class ReferenceBackend:
    def unavailable(self) -> str | None:
        return None

    def serves(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use = ORDINARY) -> Plan | str:
        if not dtype.is_floating_point:
            return f"dtype {dtype} is not a floating-point type"
        if device.type == "mps":
            return "device type 'mps' has no float64"
        return Plan("reference", "reference", "named outright", profitable=False)

    def kernels(self, x: Tensor, weight: Tensor, geometry: Geometry, plan: str, needs: Needs) -> tuple[str, ...]:
        return ("torch's own operations",)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str, with_code: bool
    ) -> tuple[Tensor, Tensor]:
        y = new_output(x, weight, geometry)
        code = new_code(y, with_code)
        if y.numel() == 0:
            return y, code
        z = eager.conv(x.double(), weight.double(), None if bias is None else bias.double(), geometry.settings)
        best, position = eager.pool_with_positions(z, geometry.settings)
        dead = best <= 0
        y.copy_(torch.where(dead, 0, best))
        if with_code:
            code.copy_(torch.where(dead, DEAD, offset_in_window(position, geometry)))
        return y, code

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: str, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        if code.device.type == "cpu" and not bool(((code == DEAD) | winners(code, geometry).live).all()):
            raise RuntimeError(BAD_CODES)
        return gradients(dy, code, x, weight, geometry, needs)

    def batch_statistics(self, geometry: Geometry, plan: Plan, dx: bool) -> Plan | str:
        return plan

    def patch_moments(self, x: Tensor, geometry: Geometry) -> Moments:
        s = geometry.settings
        top, bottom, left, right = s.padding
        padded = F.pad(x.double(), (left, right, top, bottom))
        patches = F.unfold(padded, geometry.kernel, s.dilation, 0, s.stride)  # (N, C_in * taps, positions)
        patches = patches.unflatten(1, (s.groups, -1)).permute(1, 2, 0, 3).flatten(2)
        mean = patches.mean(2)
        patches = patches - mean[..., None]
        return Moments(mean, patches @ patches.mT)


def gradients(
    dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dw and db in operations of torch alone; a code that names no conv output counts as dead."""
    won = winners(code, geometry)
    live = torch.where(won.live, dy.double(), 0)
    dx, dw, db = new_gradients(code, weight, geometry, needs)
    if needs[2]:
        db.copy_(live.sum((0, 2, 3)).to(db.dtype))  # `copy_` alone leaves a forward-mode tangent in float64
    if needs[0] or needs[1]:
        _walk_winners(live, won, x, weight.double(), geometry, dx, dw, needs)
    return dx, dw, db


class Winners(NamedTuple):
    """Where in the conv output each window's winner stands: tensors of code's shape."""

    live: Tensor  # bool: whether there is one
    row: Tensor  # int64, 0 where there is none
    column: Tensor


def winners(code: Tensor, geometry: Geometry) -> Winners:
    """What the codes say; one that is neither below the window nor names a conv output counts as dead."""
    s = geometry.settings
    offset = code.long()
    first_row, first_column = _window_origins(geometry, code.device)
    row = first_row + offset // s.pool_kernel[1] * s.pool_dilation[0]
    column = first_column + offset % s.pool_kernel[1] * s.pool_dilation[1]
    inside = (row >= 0) & (row < geometry.conv_height) & (column >= 0) & (column < geometry.conv_width)
    live = (offset < geometry.window) & inside
    return Winners(live, torch.where(live, row, 0), torch.where(live, column, 0))


def offset_in_window(position: Tensor, geometry: Geometry) -> Tensor:
    """The row-major offset inside its window of each of `eager.pool_with_positions`' indices."""
    s = geometry.settings
    first_row, first_column = _window_origins(geometry, position.device)
    row = (position // geometry.conv_width - first_row) // s.pool_dilation[0]
    column = (position % geometry.conv_width - first_column) // s.pool_dilation[1]
    return row * s.pool_kernel[1] + column


def winner_values(x: Tensor, weight: Tensor, bias: Tensor | None, code: Tensor, geometry: Geometry) -> Tensor:
    """The conv output at each window's winner, 0 where dead: linear in x, weight and bias; torch differentiates it."""
    won = winners(code, geometry)
    z = eager.conv(x, weight, bias, geometry.settings).flatten(2)
    picked = z.gather(2, (won.row * geometry.conv_width + won.column).flatten(2)).view(geometry.output_shape)
    return torch.where(won.live, picked, 0)


def _window_origins(geometry: Geometry, device: torch.device) -> tuple[Tensor, Tensor]:
    """Conv rows [pooled_height, 1] and columns [pooled_width] at which the pool windows begin, padding included."""
    s = geometry.settings
    rows = torch.arange(geometry.pooled_height, device=device)[:, None] * s.pool_stride[0] - s.pool_padding[0]
    columns = torch.arange(geometry.pooled_width, device=device) * s.pool_stride[1] - s.pool_padding[1]
    return rows, columns


def _walk_winners(
    live: Tensor,
    won: Winners,
    x: Tensor | None,
    weight: Tensor,
    geometry: Geometry,
    dx: Tensor,
    dw: Tensor,
    needs: Needs,
) -> None:
    """Fill dx and dw from the live winners alone, so that a dead position next to an infinity contributes exactly 0.

    A conv output at (row, column) reads the padded input at `row * stride + tap * dilation`. For a chunk of output
    channels of one group those reads form [N, channel, window, tap]; dw sums `live * x[read]` and dx scatters
    `live * weight`.
    """
    s = geometry.settings
    top, bottom, left, right = s.padding
    padded_width = geometry.width + left + right
    padded_size = (geometry.height + top + bottom) * padded_width
    taps_h = torch.arange(geometry.kernel[0], device=live.device)[:, None] * s.dilation[0]
    taps_w = torch.arange(geometry.kernel[1], device=live.device) * s.dilation[1]
    tap = (taps_h * padded_width + taps_w).flatten()
    first = (won.row * s.stride[0] * padded_width + won.column * s.stride[1]).flatten(2)  # [N, C_out, windows]
    live, alive = live.flatten(2), won.live.flatten(2)
    image = torch.arange(geometry.batch, device=live.device)[:, None, None, None]

    padded_x = None
    if needs[1] and x is not None:
        padded_x = F.pad(x.to(weight.dtype), (left, right, top, bottom)).flatten(2).transpose(1, 2)  # [N, padded, C_in]
    padded_dx = weight.new_zeros(geometry.batch, padded_size, geometry.in_channels)
    flat_weight = weight.flatten(2)  # [C_out, C_in / groups, tap]

    per_channel = max(1, geometry.batch * first.shape[2] * geometry.reduction)
    step = max(1, _CHUNK // per_channel)
    per_group = geometry.out_channels // s.groups
    for group in range(s.groups):
        inputs = slice(group * geometry.group_channels, (group + 1) * geometry.group_channels)
        for begin in range(group * per_group, (group + 1) * per_group, step):
            outputs = slice(begin, min(begin + step, (group + 1) * per_group))
            read = first[:, outputs, :, None] + tap  # [N, channel, window, tap]
            seen = alive[:, outputs, :, None, None]
            if padded_x is not None:
                # [N, channel, window, tap, C_in / groups]
                patch = torch.where(seen, padded_x[..., inputs][image, read], 0)
                grad = torch.einsum("ncp,ncptg->cgt", live[:, outputs], patch)
                dw[outputs] = grad.view(-1, *dw.shape[1:]).to(dw.dtype)
            if needs[0]:
                spread = live[:, outputs, :, None, None] * flat_weight[outputs].transpose(1, 2)[:, None]
                spread = torch.where(seen, spread, 0)
                padded_dx[..., inputs].index_put_((image.expand_as(read), read), spread, accumulate=True)
    if needs[0]:
        plane = padded_dx.to(dx.dtype).transpose(1, 2).unflatten(2, (-1, padded_width))
        dx.copy_(plane[:, :, top : top + geometry.height, left : left + geometry.width])


BACKEND = ReferenceBackend()
