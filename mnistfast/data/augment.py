"""Augmentation: each image of a batch is warped by its own random map, on its device, in one interpolation.

Rotation, shift, zoom, shear and flip make one affine map an image; an elastic displacement is added to the same
sampling grid. The random numbers hang on the seed and the step alone and are drawn for the whole batch, so a resumed
run needs no generator state, and processes that share a batch take slices of one draw. They are drawn on the CPU; what
they come to is sent to the device for an epoch at once, for each transfer makes the device wait or the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Control points of the elastic field along an axis, and the width of each one's bump in steps between them: on 28
# pixels about the deviation of 4 pixels that Simard, Steinkraus and Platt 2003 ("Best practices for convolutional
# neural networks") smooth their field with, from 98 random numbers an image instead of 1,568.
_POINTS = 7
_BUMP = 0.9


@dataclass(frozen=True)
class Augmentation:
    """How far images are moved at most; every amount is drawn evenly from both directions.

    Attributes:
        rotation: degrees.
        shift: share of the width and of the height, each drawn for itself.
        zoom: 0.2 is a factor from 0.8 to 1.2, for the width and the height each.
        shear: slope, so that a row is moved sideways by `shear` times its distance from the middle.
        elastic: standard deviation in pixels of a smooth random displacement.
        flip: whether half of the images are mirrored, left for right. Never for writing: a mirrored 2 is no digit.
    """

    rotation: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0
    flip: bool = False

    def draw(self, count: int, key: Sequence[int]) -> Draws:
        """Returns the random numbers for `count` images; the same `key` (integers from 0) gives the same ones."""
        generator = np.random.default_rng(key)
        amounts = generator.uniform(-1, 1, (count, 7)).astype(np.float32)
        shape = (count, 2, _POINTS, _POINTS) if self.elastic else (count, 0)
        return Draws(torch.from_numpy(amounts), torch.from_numpy(generator.standard_normal(shape, np.float32)))


AUGMENTATIONS = {
    "none": Augmentation(),
    "mild": Augmentation(rotation=10, shift=0.08, zoom=0.1, shear=0.1, elastic=0.5),
    "sources": Augmentation(rotation=20, shift=0.2, zoom=0.2, shear=0.2),
    "objects": Augmentation(rotation=5, shift=0.1, zoom=0.1, flip=True),
}
"""The named choices. `sources` is what many tutorials give to MNIST, less their flip: a digit flipped is none."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch, on the CPU.

    Attributes:
        amounts: float32 (N, 7) in [-1, 1): rotation, shift x and y, zoom x and y, shear, flip.
        bumps: float32 (N, 2, 7, 7) of the standard normal distribution, or (N, 0) where nothing is elastic.
    """

    amounts: Tensor
    bumps: Tensor

    def __getitem__(self, rows: slice) -> Draws:
        return Draws(self.amounts[rows], self.bumps[rows])


@dataclass(frozen=True)
class Maps:
    """Where each image of a batch is read from, on the device of the images.

    Attributes:
        affine: float32 (N, 2, 3), as `affine_grid` takes them.
        bumps: float32 (N, 2, 7, 7), standard normal, of the control points, or (N, 0) where nothing is elastic.
    """

    affine: Tensor
    bumps: Tensor

    def at(self, rows: Tensor) -> Maps:
        """Returns those of `rows`, int64 (n,) on the same device."""
        return Maps(self.affine.index_select(0, rows), self.bumps.index_select(0, rows))


def maps(how: Augmentation, batches: Sequence[Draws], size: Sequence[int], device: torch.device) -> Maps:
    """Returns what `warp` moves the images of batches by, one after the other; the device is sent two arrays.

    Args:
        how: the amounts.
        batches: of `how.draw`, each for a batch.
        size: (H, W) of the images.
        device: where the images are.
    """
    height, width = size
    affine = torch.cat([_sampling_maps(how, draws.amounts, height, width) for draws in batches])
    bumps = torch.cat([draws.bumps for draws in batches])
    return Maps(*(tensor.to(device, non_blocking=True) for tensor in (affine, bumps)))


def augment(images: Tensor, how: Augmentation, draws: Draws) -> Tensor:
    """Returns `images` moved: turned, sheared, zoomed and flipped about the middle, then shifted.

    What comes in from outside repeats the nearest border pixel, so it makes no difference whether the images are
    normalised already (a black frame would have to be black in their units).

    Args:
        images: float (N, C, H, W) on any device.
        how: the amounts.
        draws: of `how.draw`, N of them.
    """
    return warp(images, how, maps(how, [draws], images.shape[2:], images.device))


def warp(images: Tensor, how: Augmentation, moves: Maps) -> Tensor:
    """Returns `images`, float (N, C, H, W), moved as `augment` moves them, by N of the `maps` of `how`."""
    if not len(images):  # a rank's share of a small last batch; affine_grid refuses it
        return images
    grid = F.affine_grid(moves.affine, list(images.shape), align_corners=False)
    if how.elastic:
        grid = grid + _elastic_field(moves.bumps, *images.shape[2:]) * how.elastic
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def _sampling_maps(how: Augmentation, amounts: Tensor, height: int, width: int) -> Tensor:
    """Returns, for each image, where its output pixels are read from: (N, 2, 3) for `affine_grid`.

    A point p of the image goes to q = R Z S p + t (shear, zoom, rotation, shift), so q is read at p = S' Z' R' (q - t),
    the dashes being inverses. Computed in pixels from the middle, then put in `affine_grid`'s units, in which width and
    height are both 2.
    """
    turn, shift_x, shift_y, zoom_x, zoom_y, slope, side = amounts.double().unbind(1)
    angle = turn * math.radians(how.rotation)
    cos, sin = angle.cos(), angle.sin()
    zoom_x, zoom_y, slope = 1 + zoom_x * how.zoom, 1 + zoom_y * how.zoom, slope * how.shear
    # Z' R', with y pointing down and the turn counter-clockwise as one sees it
    xx, xy, yx, yy = cos / zoom_x, -sin / zoom_x, sin / zoom_y, cos / zoom_y
    xx, xy = xx - slope * yx, xy - slope * yy  # S' in front
    if how.flip:
        mirror = torch.where(side < 0, -1.0, 1.0)
        xx, xy = xx * mirror, xy * mirror
    xy, yx = xy * height / width, yx * width / height
    shift_x, shift_y = 2 * how.shift * shift_x, 2 * how.shift * shift_y
    rows = (xx, xy, -xx * shift_x - xy * shift_y, yx, yy, -yx * shift_x - yy * shift_y)
    return torch.stack(rows, 1).view(-1, 2, 3).float()


def _elastic_field(bumps: Tensor, height: int, width: int) -> Tensor:
    """Returns smooth displacements (N, H, W, 2) in `affine_grid`'s units; their standard deviation is one pixel."""
    rows, columns = (_bump_weights(size, bumps.device) for size in (height, width))
    field = rows @ bumps @ columns.T  # [N, 2, H, W]; separable, so two small products
    return torch.stack((field[:, 0] * (2 / width), field[:, 1] * (2 / height)), -1)


@cache
def _bump_weights(size: int, device: torch.device) -> Tensor:
    """Returns (size, points), sent to `device` once: how much each pixel moves with each control point.

    The squares of a row sum to 1, which makes every pixel's displacement as large as the noise.
    """
    pixels = (torch.arange(size, dtype=torch.float64) + 0.5) / size * (_POINTS - 1)
    distance = (pixels[:, None] - torch.arange(_POINTS)) / _BUMP
    weights = torch.exp(-distance.square() / 2)
    return (weights / weights.norm(dim=1, keepdim=True)).float().to(device)
