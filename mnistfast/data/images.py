"""Images in folders named by their classes, and fitting images to one size and number of channels.

An image is decoded by Pillow, which is imported only when there is one; a damaged one is a `DataError` with one line.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnistfast.data.reading import Arrays, opened, whole
from mnistfast.errors import DataError, StorageError
from mnistfast.files.decoding import decoding_as

if TYPE_CHECKING:
    from PIL import Image

SIDE_MAX = 4096
"""Pixels along an image's side that a class folder may have; more would be a photo archive, or a decompression bomb."""

MAX_IMAGE_BYTES = 128 << 20
"""The longest image file: SIDE_MAX squared with three channels of 16 bits, as they are, takes 101 MB."""

MAX_PIXEL_BYTES = 480 << 20
"""What the images of a set may have: 640,000 of MNIST's size, 3,300 in colour of 224 x 224. Beside them one is decoded,
which took 387 MiB at most (4096 x 4096, of all types): together less than 1 GiB."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp")
_BILINEAR = 2  # PIL.Image.Resampling's, without the import: anti-aliased there, and adds no light beside strokes
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")


def class_folders(folder: Path) -> list[Path]:
    """Returns the sub-folders of `folder` that hold images directly, in the order of their classes: 2 before 10."""
    found = [path for path in _entries(folder) if path.is_dir() and any(_image_files(path))]
    numbers = all(path.name.isdigit() for path in found)
    return sorted(found, key=lambda path: (int(path.name) if numbers else 0, path.name))


def read_class_folders(
    folder: Path, classes: Sequence[str], taken: int = 0, *, resize: int | None, gray: bool
) -> Arrays:
    """Reads `folder`/<class>/<image>: one channel when all images are grey or `gray` asks for it, else three.

    Args:
        folder: the folder.
        classes: the names of the classes.
        taken: bytes of `MAX_PIXEL_BYTES` that the set's other images have.
        resize: make the images this many pixels wide and high.
        gray: make them grey.

    Raises:
        DataError: a folder that is no class, an image that cannot be read, sizes that differ without `resize`.
    """
    labels: list[int] = []
    files: list[Path] = []
    for path in class_folders(folder):
        if path.name not in classes:
            raise DataError(f"{path}: no class of the training images is called {path.name}")
        files += sorted(_image_files(path))
        labels += [classes.index(path.name)] * (len(files) - len(labels))
    images = np.empty((0, 1, 1, 1), np.uint8)
    for number, file in enumerate(files):
        picture = _planes(_read_image(file, resize=resize, gray=gray), colour=False)
        channels, height, width = picture.shape
        if number and (height, width) != images.shape[2:]:
            what = f"{file} is {height}x{width}, {files[0]} is {images.shape[2]}x{images.shape[3]}"
            raise DataError(what, "Images of one set have one size", "--resize 28")
        if not number or channels > images.shape[1]:
            if taken + len(files) * picture.size > MAX_PIXEL_BYTES:
                what = f"{folder}: {len(files):,} images of {width}x{height}"
                raise DataError(what, f"A set may have {MAX_PIXEL_BYTES:,} bytes of pixels", "a smaller --resize")
            before, images = images[:number], np.empty((len(files), *picture.shape), np.uint8)
            images[:number] = before  # gray, in all three colours now
            del before  # or it would stay in memory beside the images that are decoded next
        images[number] = picture
    return images, np.array(labels, np.int64)


def fit_images(images: np.ndarray, *, resize: int | None, gray: bool) -> np.ndarray:
    """Returns uint8 (N, C, H, W) made grey and resized to `resize` x `resize`, each where asked for and not so yet."""
    to_gray = gray and images.shape[1] == 3
    if not to_gray and resize in (None, images.shape[2]) and resize in (None, images.shape[3]):
        return images
    from PIL import Image

    pictures = (
        np.squeeze(image.transpose(1, 2, 0), 2) if len(image) == 1 else image.transpose(1, 2, 0) for image in images
    )
    fitted = (_fit(Image.fromarray(picture), resize, to_gray) for picture in pictures)
    return np.stack([_planes(picture, images.shape[1] == 3 and not to_gray) for picture in fitted])


def _fit(image: Image.Image, resize: int | None, gray: bool) -> np.ndarray:
    if gray and image.mode != "L":
        image = image.convert("L")
    if resize and image.size != (resize, resize):
        image = image.resize((resize, resize), _BILINEAR)
    return np.asarray(image)


def _planes(picture: np.ndarray, colour: bool) -> np.ndarray:
    """Returns (H, W) or (H, W, 3) as (C, H, W)."""
    if picture.ndim == 3:
        return picture.transpose(2, 0, 1)
    return np.repeat(picture[np.newaxis], 3 if colour else 1, 0)


def _read_image(path: Path, *, resize: int | None, gray: bool) -> np.ndarray:
    """Returns (H, W) of a grey image, else (H, W, 3), upright as EXIF says; what is transparent becomes white."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    with (
        decoding_as(DataError, f"{path}: cannot be read as an image", "delete or replace it"),
        warnings.catch_warnings(),
        opened(path) as stream,
    ):
        warnings.simplefilter("ignore")  # of odd metadata and of bombs: their size is looked at here
        # From memory: a file's read(n) allocates n bytes, and in a damaged PNG n is anything up to 4 GiB.
        content = io.BytesIO(whole(path, stream, MAX_IMAGE_BYTES))
        try:
            stored = Image.open(content, formats=_IMAGE_FORMATS)
        except UnidentifiedImageError as error:  # which names the buffer in memory
            raise ValueError(f"It is none of {', '.join(_IMAGE_FORMATS)}") from error
        with stored:
            if max(stored.size) > SIDE_MAX:
                raise DataError(f"{path}: {stored.size[0]}x{stored.size[1]} pixels, {SIDE_MAX} a side are allowed")
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith(("I", "F")):
                picture = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            elif image.has_transparency_data:
                drawn = image.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", image.size, "white"), drawn)
                picture = picture.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
            else:
                picture = image.convert("L" if image.mode in ("1", "L") else "RGB")
            return _fit(picture, resize, gray)


def _image_files(folder: Path) -> Iterator[Path]:
    return (
        path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be read", error.strerror or str(error), "check its permissions"
        ) from error
