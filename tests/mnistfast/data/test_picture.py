"""Picture files of every kind and format give the same pixels; what is no picture is refused in one line."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mnistfast.data import picture
from mnistfast.data.picture import decode, to_png
from mnistfast.errors import DataError


@pytest.fixture(scope="module")
def drawing():
    """A drawing that no turn or mirror leaves as it is: dark on white, 360 x 300."""
    image = Image.new("L", (360, 300), 255)
    pen = ImageDraw.Draw(image)
    pen.line([(100, 40), (100, 240), (220, 240)], fill=20, width=14)
    pen.ellipse((200, 60, 240, 90), fill=90)
    return image


def encode(image, form="PNG", **options):
    """Returns a Pillow image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def difference(content, image):
    """Returns the mean difference of the grey values of a file and an image, after decoding."""
    found = decode(content)
    assert (found.mode, found.size) == ("RGB", image.size)
    return np.abs(np.asarray(found, float) - np.asarray(image.convert("RGB"))).mean()


def test_upright_as_the_camera_says(drawing):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    turned = drawing.rotate(90, expand=True)
    assert difference(encode(turned, "JPEG", quality=95, exif=exif), drawing) < 2
    assert difference(encode(turned), turned) == 0


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_kind_of_pixel(drawing, mode):
    grey = drawing.point(lambda value: 255 * (value > 50)) if mode == "1" else drawing
    sixteen = Image.fromarray(np.asarray(drawing).astype(np.uint16) * 257)
    image = sixteen if mode == "I;16" else grey.convert(mode, dither=Image.Dither.NONE)
    form = "TIFF" if mode in ("CMYK", "F", "I") else "PNG"
    wanted = grey
    if mode in ("I", "F"):  # of any range: the darkest becomes black, the lightest white
        wanted = grey.point(lambda value: round((value - 20) / 235 * 255))
    assert difference(encode(image, form), wanted) < 0.1


def test_what_is_transparent_is_white(drawing):
    ink = Image.new("RGBA", drawing.size, (0, 0, 0, 0))
    ink.putalpha(drawing.point(lambda grey: 255 - grey))
    assert difference(encode(ink), drawing) < 1


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_format(drawing, form):
    assert difference(encode(drawing, form), drawing) < 2


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_phone_photograph_is_shrunk(drawing, form):
    large = drawing.resize((5760, 4800))
    small = decode(encode(large, form))
    assert small.size in [(384, 320), (720, 600)]  # a JPEG by the eighth part that its decoder can give
    assert np.abs(np.asarray(small, float) - np.asarray(drawing.resize(small.size).convert("RGB"))).mean() < 2


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_gives_the_pixels_back(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 28, 20), np.uint8)
    found = np.asarray(decode(to_png(pixels))).transpose(2, 0, 1)
    np.testing.assert_array_equal(found, np.broadcast_to(pixels, (3, 28, 20)))


def bomb(width, height):
    """Returns a PNG of 100 bytes that says it is `width` x `height`."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot identify image"),
        (b"hello" * 100, "cannot identify image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", "cannot identify image"),
        (bomb(60_000, 60_000), "the image has too many pixels. At most 50,000,000"),
        (bomb(8_000, 8_000), "the image is 8,000 x 8,000 pixels. At most 50,000,000"),
        (bomb(100, 5_000), "the image is 100 x 5,000 pixels. At least 8 x 8"),
        (bomb(7, 9), "the image is 7 x 9 pixels"),
        (bomb(5_000, 5_000), "cannot decode image"),
        (bytes(picture.MAX_BYTES + 1), "67,108,865 bytes are too many"),
    ],
    ids=["nothing", "text", "postscript", "bomb", "large", "strip", "tiny", "half", "file"],
)
def test_refused(content, message):
    with pytest.raises(DataError, match=message):
        decode(content)


def test_truncated_files(drawing):
    for form in ("PNG", "JPEG", "GIF", "TIFF"):
        content = encode(drawing, form)
        with pytest.raises(DataError, match="image"):
            decode(content[: len(content) // 2])
