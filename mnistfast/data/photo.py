"""A photograph or drawing, turned into a picture of the kind that a model was trained on.

For grey models the way is MNIST's own (LeCun et al. 1998, section III.A): the digit alone, light on black, its box
scaled to 20 of 28 pixels with its aspect kept, placed by its centre of mass. What comes before, finding the digit, is
arithmetic on grey values: no step was learnt, and `View` says what was done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from mnistfast.data.picture import decode
from mnistfast.errors import DataError

LEAST_CONTRAST = 20.0  # grey levels between ink and paper: what a JPEG makes of blank paper stays below
LEAST_SIGNAL = 5.0  # ... and standard deviations of the paper's noise
MASK = 0.35  # share of the ink's strength that makes a pixel part of the character
FLOOR, CEILING = 0.1, 0.9  # shares of it that become black and white in the view
EDGE = 0.2  # strength from which a pixel of the soft edge counts for the character's box
LEAST_CHARACTER = 0.03  # its longer side, as a share of the picture's
NEAR = 0.15  # of the character's longer side: a part less far off belongs to it
SPECK = 0.01  # of its largest part's area: a part with less is dirt
MOST_INK = 0.5  # of the picture; one character on paper covers less
BOX = 20 / 28  # share of the view's side that the character's longer side takes up
# A stroke thinner than this share of the character's longer side would fade in 28 pixels, and is widened to it.
THINNEST_STROKE = 0.08


@dataclass(frozen=True, eq=False)
class View:
    """What a model gets to see of a picture.

    Attributes:
        pixels: uint8 (C, H, W).
        inverted: the ink was darker than the paper.
        ink: share of the picture's pixels that are ink.
        untouched: the picture had the model's size and was light on dark: it is passed on as it is.
        warnings: what makes the answer doubtful, in words.
    """

    pixels: np.ndarray
    inverted: bool = False
    ink: float = 0.0
    untouched: bool = False
    warnings: tuple[str, ...] = ()


def prepare(content: bytes, input_size: tuple[int, int, int]) -> View:
    """Returns the view of the image file `content` for a model that takes `input_size` (C, H, W).

    C = 1 expects one character and prepares it as MNIST was; any other C takes the picture's middle square in colour.

    Raises:
        DataError: no readable image, too large or too small, or nothing drawn on it.
    """
    channels, height, width = input_size
    image = decode(content)
    if channels != 1:
        square = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        return View(np.asarray(square).transpose(2, 0, 1).copy(), untouched=image.size == (width, height))
    grey = np.asarray(image.convert("L"))
    if grey.shape == (height, width) and _is_light_on_dark(grey):
        return View(grey[np.newaxis].copy(), ink=float((grey > 127).mean()), untouched=True)
    return _view_of_character(grey.astype(np.float32), height, width)


# Grey values


def _is_light_on_dark(grey: np.ndarray) -> bool:
    """Tells whether `grey` looks like an image of MNIST: its border is black and something in it is not."""
    return bool(np.median(grey[_border(grey.shape)]) < LEAST_CONTRAST and np.ptp(grey) >= LEAST_CONTRAST)


def _border(shape: tuple[int, ...]) -> np.ndarray:
    """Returns a mask of the outer twelfth of an image on each side."""
    mask = np.ones(shape, bool)
    rows, columns = (math.ceil(side / 12) for side in shape)
    mask[rows:-rows, columns:-columns] = False
    return mask


def _view_of_character(grey: np.ndarray, height: int, width: int) -> View:
    """Returns the view of the character on the picture `grey`, float32 (H, W) in 0..255."""
    departure, noise = _without_background(grey)
    # The border shows the paper. What departs from it most, up or down, is ink.
    lighter, darker = (float(np.maximum(side - 3 * noise, 0).sum()) for side in (departure, -departure))
    inverted = darker > lighter
    ink = np.maximum(-departure if inverted else departure, 0)
    strength = _upper_mean(ink[ink > LEAST_SIGNAL * noise])
    if strength < LEAST_CONTRAST:
        raise DataError("the image is blank", f"Nothing on it stands out by {LEAST_CONTRAST:.0f} of 255 grey levels")
    labels, boxes, areas = _components(ink > max(MASK * strength, LEAST_SIGNAL * noise))
    chosen, others = _choose(boxes, areas, grey.shape)
    own = np.isin(labels, chosen + 1)
    share = float(own.mean())
    notes = []
    if others:
        notes.append(f"{others + 1} characters found: the largest is read")
    if share > MOST_INK:
        notes.append(f"ink covers {share:.0%} of the picture: is it one character on plain paper?")
    soft = np.clip((ink / strength - FLOOR) / (CEILING - FLOOR), 0, 1)
    soft[ink < 3 * noise] = 0
    return View(_place(soft, own, height, width), inverted, share, warnings=tuple(notes))


def _without_background(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns `grey` less a smooth background, and the standard deviation of the background's noise.

    The background is a quadratic surface (uneven light), fitted to the border first and then to all pixels that lie
    near it: least squares with Tukey's biweight, to which ink counts nothing however far it lies from the surface.
    """
    step = max(1, max(grey.shape) // 96)  # six coefficients need no more than 10,000 pixels
    small = grey[::step, ::step]
    terms = _quadratic(small.shape)
    border = _border(small.shape)
    rest = small - np.median(small[border])
    noise = _spread(rest[border])
    for used in (border,) * 4 + (np.ones_like(border),) * 4:  # each settles in three or four rounds
        weights = np.clip(1 - (rest / (4.685 * noise)) ** 2, 0, None) ** 2 * used
        weighted = (terms * weights).reshape(6, -1)
        surface = np.linalg.lstsq(weighted @ terms.reshape(6, -1).T, weighted @ small.reshape(-1), rcond=None)[0]
        rest = small - np.tensordot(surface, terms, 1)
        noise = _spread(rest[used & (np.abs(rest) < 4.685 * noise)])
    return grey - np.tensordot(surface, _quadratic(grey.shape), 1), noise


def _quadratic(shape: tuple[int, ...]) -> np.ndarray:
    """Returns 1, x, y, xx, xy, yy at each pixel: float32 (6, H, W), x and y from -1 to 1."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    y = y[:, np.newaxis]
    return np.stack(np.broadcast_arrays(np.float32(1), x, y, x * x, x * y, y * y))


def _spread(values: np.ndarray) -> float:
    """Returns the standard deviation of noise around 0, from its median: at least 1, the step of a grey value."""
    return max(1.0, 1.4826 * float(np.median(np.abs(values)))) if values.size else 1.0


def _upper_mean(values: np.ndarray) -> float:
    """Returns the mean of the upper of the two classes that Otsu (1979) splits `values` into, 0 of no values."""
    if not values.size:
        return 0.0
    counts, edges = np.histogram(values, 64, (0, values.max() + 1))
    sums = counts * (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts)[:-1], np.cumsum(counts[::-1])[-2::-1]
    low, high = np.cumsum(sums)[:-1], np.cumsum(sums[::-1])[-2::-1]
    between = below * above * (high / np.maximum(above, 1) - low / np.maximum(below, 1)) ** 2
    return float(values[values >= edges[1 + int(np.argmax(between))]].mean())


# Characters


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the parts of `mask` that touch, corners included.

    Returns:
        For each pixel the number of its component from 1, 0 outside the mask; for each component its box (top, left,
        bottom, right; the last two exclusive) and its area.
    """
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    boxes = [[*(side.start for side in box), *(side.stop for side in box)] for box in ndimage.find_objects(labels)]
    return labels, np.array(boxes, np.int64).reshape(count, 4), np.bincount(labels.flat, minlength=count + 1)[1:]


def _choose(boxes: np.ndarray, areas: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Chooses the components that make up the character.

    Returns:
        Their indices, and how many other characters there seem to be.

    Raises:
        DataError: there is none of the size of a character.
    """
    largest = np.argsort(-areas, kind="stable")[:64]  # more parts than any character has
    boxes, areas = boxes[largest], areas[largest]
    extent = boxes[:, 2:] - boxes[:, :2]
    long = extent.max(1, initial=0)
    if not (long >= max(LEAST_CHARACTER * max(shape), 5)).any():
        raise DataError("the image is blank", "There is nothing on it but specks")
    # The edge of a page or a shadow meets two sides of the picture. A character may, when nothing else is there.
    meets = (boxes == [0, 0, *shape]).sum(1) >= 2
    inside = ~meets & (long >= long.max() / 4)
    main = int(np.argmax(np.where(inside, areas, 0) if inside.any() else areas))

    own = np.zeros(len(boxes), bool)
    own[main] = True
    while True:
        low, high = boxes[own, :2].min(0), boxes[own, 2:].max(0)
        size = (high - low).max()
        gap = np.maximum(boxes[:, :2] - high, low - boxes[:, 2:]).max(1)  # negative: the boxes overlap
        sideways = np.maximum(boxes[:, 1] - high[1], low[1] - boxes[:, 3])
        beside = (sideways > NEAR * size / 4) & (extent[:, 0] > (high - low)[0] / 2)  # a neighbour as tall
        joined = own | ((gap < NEAR * size) & ~beside & (areas >= SPECK * areas[main]))
        if joined.sum() == own.sum():
            break
        own = joined
    others = ~own & ~meets & (extent[:, 0] > (high - low)[0] / 2) & (areas > areas[own].sum() / 5)
    return largest[own], int(others.sum())


def _place(ink: np.ndarray, own: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the character as uint8 (1, `height`, `width`), of MNIST's size and place.

    Args:
        ink: strength in 0..1 of each pixel of the picture.
        own: mask of the character's core, not empty; its soft edge is the ink around it.
    """
    rows, columns = (np.flatnonzero(own.any(axis)) for axis in (1, 0))
    size = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    margin = math.ceil(0.15 * size)  # room for the edge and for what widening adds
    top, left = rows[0], columns[0]
    window = (slice(top, rows[-1] + 1 + 2 * margin), slice(left, columns[-1] + 1 + 2 * margin))
    own, ink = (np.pad(array, margin)[window] for array in (own, ink))
    ink = ink * ndimage.maximum_filter(own, 2 * math.ceil(size / 20) + 1)
    thin = THINNEST_STROKE * size - _stroke(own)
    if thin > 1:
        ink = ndimage.maximum_filter(ink, 2 * round(thin / 2) + 1)
    rows, columns = (np.flatnonzero((ink > EDGE).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX * min(height, width) / max(ink.shape)
    tall, wide = (max(1, round(side * scale)) for side in ink.shape)
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((wide, tall), Image.Resampling.BICUBIC))
    small = np.clip(small / small.max(), 0, 1)
    view = np.zeros((1, height, width), np.uint8)
    y, x = (
        min(
            max(round(side / 2 - float(np.average(np.arange(length), weights=small.sum(1 - axis)))), 0),
            side - length,
        )
        for axis, (side, length) in enumerate(((height, tall), (width, wide)))
    )
    view[0, y : y + tall, x : x + wide] = np.round(255 * small)
    return view


def _stroke(mask: np.ndarray) -> float:
    """Returns the mean width of the strokes of `mask` in pixels: a stroke's area is its length times its width."""
    area = int(mask.sum())
    return 2 * area / max(1, area - int(ndimage.binary_erosion(mask).sum()))
