"""Class folders of images: what is read of them, what is refused in one line, and the fitting of images."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from mnistfast.data import images
from mnistfast.data.sources import load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 6, 6), np.uint8)


def test_class_folders_in_the_order_of_numbers(tmp_path, save_folders):
    names = [str(k) for k in range(12)]
    data = load(str(save_folders(tmp_path, list(GREY[:24]), names)))
    assert data.classes == tuple(names)  # 2 before 10
    assert data.train.images.shape == (24, 1, 6, 6)
    np.testing.assert_array_equal(data.train.images[2:4, 0], GREY[[1, 13]])
    np.testing.assert_array_equal(data.test.labels, np.repeat(np.arange(12), 2))


def test_sizes_that_differ_are_resized_when_asked(tmp_path, refused, save_folders):
    save_folders(tmp_path, [GREY[0], RNG.integers(0, 256, (9, 7), np.uint8)], ["a", "b"])
    refused(tmp_path, "Images of one set have one size. FIX: --resize 28")
    data = load(str(tmp_path), resize=28)
    assert data.train.images.shape == (2, 1, 28, 28)
    expected = np.asarray(Image.fromarray(GREY[0]).resize((28, 28), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(data.train.images[0, 0], expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_modes_of_images(tmp_path, mode):
    for name, shade in (("a", 0), ("b", 255)):
        folder = tmp_path / name
        folder.mkdir()
        image = Image.new("L", (6, 6), shade)
        image = Image.new("I;16", (6, 6), shade * 257) if mode == "I;16" else image.convert(mode)
        for k in range(5):
            image.save(folder / (f"{k}.jpg" if mode == "CMYK" else f"{k}.png"))
    data = load(str(tmp_path))
    assert data.train.images.shape[1] == (1 if mode in ("1", "L", "LA", "I;16") else 3)
    assert {int(k) for k in data.train.images[data.train.labels == 0].flatten()} == {0}
    assert data.train.images[data.train.labels == 1].min() >= 254


def test_transparent_is_white(tmp_path, save_folders):
    save_folders(tmp_path, [np.zeros((6, 6, 4), np.uint8)] * 2, ["a", "b"])
    assert load(str(tmp_path)).train.images.min() == 255


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_unreadable_image_is_named(tmp_path, content, refused, save_folders):
    save_folders(tmp_path, GREY[:4], ["a", "b"])
    (tmp_path / "train" / "b" / "bad.png").write_bytes(content)
    refused(tmp_path, "b/bad.png: cannot be read as an image")


def test_other_content_is_told_from_damage(tmp_path, refused, save_folders):
    save_folders(tmp_path, GREY[:4], ["a", "b"])
    (tmp_path / "train" / "b" / "bad.png").write_bytes(b"hello")
    refused(tmp_path, "b/bad.png: cannot be read as an image. It is none of PNG, JPEG,")


def test_huge_image_is_not_unpacked(tmp_path, refused):
    folder = tmp_path / "a"
    folder.mkdir()
    Image.new("1", (5000, 10)).save(folder / "a.png")
    refused(tmp_path, "a.png: 5000x10 pixels, 4096 a side are allowed")


def test_more_pixels_than_allowed(tmp_path, refused, save_folders, monkeypatch):
    save_folders(tmp_path, GREY, ["a", "b"])
    dataset = load(str(tmp_path))
    allowed = dataset.train.images.nbytes + dataset.test.images.nbytes
    monkeypatch.setattr(images, "MAX_PIXEL_BYTES", allowed)
    assert len(load(str(tmp_path)).train.images) == 30
    Image.new("L", (6, 6)).save(tmp_path / "test" / "b" / "z.png")
    refused(tmp_path, f"images of 6x6. A set may have {allowed:,} bytes of pixels. FIX: a smaller --resize")
    (tmp_path / "test" / "b" / "z.png").unlink()
    Image.new("RGB", (6, 6)).save(tmp_path / "train" / "b" / "z.png")  # all are colour now
    refused(tmp_path, f"train: 31 images of 6x6. A set may have {allowed:,} bytes of pixels")


def test_test_folder_with_a_class_of_its_own(tmp_path, refused, save_folders):
    save_folders(tmp_path, GREY[:4], ["a", "b"])
    save_folders(tmp_path, GREY[:4], ["c"], parts=("test",))
    refused(tmp_path, "test/c: no class of the training images is called c")


def test_a_photograph_is_read_upright(tmp_path):
    stored = np.zeros((4, 6), np.uint8)
    stored[0] = 255
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # as a phone held upright stores it: to be turned by 90 degrees
    for split in ("train", "test"):
        for name in ("0", "1"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(stored).save(tmp_path / split / name / "1.png", exif=turned)
    images = load(str(tmp_path)).train.images
    assert images.shape == (2, 1, 6, 4)
    assert (images[:, 0, :, -1] == 255).all()
