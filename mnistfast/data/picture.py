"""Picture files of every raster format: from a file's bytes to pixels that can be worked with, and back to a PNG."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from mnistfast.errors import DataError

MAX_BYTES = 64 << 20
MAX_PIXELS = 50_000_000  # a 50-megapixel phone; as RGBA its decoding takes 400 MB, our greatest need of memory
MIN_SIDE = 8  # below that no digit is legible
MAX_ASPECT = 40  # a longer strip would be shrunk to less than MIN_SIDE pixels
# Raster formats alone. Pillow would hand an EPS to Ghostscript, which runs programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")

# Larger pictures are shrunk by a whole factor to this or a little more: fast, and a stroke stays wider than a pixel.
WORKING_SIDE = 384


def decode(content: bytes) -> Image.Image:
    """Returns the image file `content` as RGB: upright, on white if transparent, shrunk to about `WORKING_SIDE`.

    Raises:
        DataError: no readable image, or one that is too large or too small.
    """
    if len(content) > MAX_BYTES:
        raise DataError(f"{len(content):,} bytes are too many for a picture", f"At most {MAX_BYTES:,} are read")
    try:
        # Pillow warns of large images and odd metadata. What matters of that is checked or raised below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            _check_size(*image.size)
            image.draft(None, (WORKING_SIDE, WORKING_SIDE))  # a JPEG is decoded at an eighth where that is enough
            return _flatten(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError("the image has too many pixels", f"At most {MAX_PIXELS:,} are read", "shrink it") from None
    except Image.UnidentifiedImageError:
        raise DataError("cannot identify image", f"Readable: {', '.join(FORMATS)}", "save it as PNG or JPEG") from None
    except Exception as error:  # damaged files make Pillow's parsers raise anything: ValueError, struct.error, KeyError
        raise DataError("cannot decode image", " ".join(str(error).split()) or type(error).__name__) from error


def to_png(pixels: np.ndarray) -> bytes:
    """Returns uint8 (C, H, W), C 1 or 3, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _check_size(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        why = f"At least {MIN_SIDE} x {MIN_SIDE} are needed, and no side more than {MAX_ASPECT} times the other"
        raise DataError(f"the image is {width:,} x {height:,} pixels", why)
    if width * height > MAX_PIXELS:
        why = f"At most {MAX_PIXELS:,} pixels are read"
        raise DataError(f"the image is {width:,} x {height:,} pixels", why, "shrink it")


def _flatten(image: Image.Image) -> Image.Image:
    factor = max(1, max(image.size) // WORKING_SIDE)
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA").reduce(factor)
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB").reduce(factor)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Returns an image of 16 bits a pixel, or of 32 in any range, as mode L."""
    values = np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise DataError("the image holds values that are no numbers")
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (float(values.min()), float(values.max()))
    return Image.fromarray(((values - low) * (255 / max(high - low, 1.0))).astype(np.uint8))
