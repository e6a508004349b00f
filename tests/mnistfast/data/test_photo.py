"""Pictures of every kind against the MNIST image that they were made of."""

import io
import os

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mnistfast.data import photo
from mnistfast.data.photo import prepare
from mnistfast.data.sources import load
from mnistfast.errors import DataError

GREY = (1, 28, 28)
REAL_DATA = os.environ.get("MNISTFAST_DATA")  # read before the tests of this folder hide it
PAPER = np.full((300, 400), 255, np.uint8)


def encode(image):
    """Returns an array (H, W) or (H, W, 3), or a Pillow image, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def on_canvas(digit, rng, *, size=None, noise=0.0, dark=None):
    """Returns a 400 x 300 picture of `digit` (28, 28): 60-200 pixels, anywhere, on light that varies by 60 levels."""
    size = size or int(rng.integers(60, 201))
    ink = np.zeros((300, 400))
    y, x = rng.integers(0, 301 - size), rng.integers(0, 401 - size)
    ink[y : y + size, x : x + size] = np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC))
    rows, columns = np.mgrid[0:300, 0:400]
    angle = rng.uniform(0, 2 * np.pi)
    slope = rows * np.sin(angle) + columns * np.cos(angle)
    background = (slope - slope.min()) / np.ptp(slope) * rng.uniform(0, 60)
    picture = background * (1 - ink / 255) + ink + rng.normal(0, noise, ink.shape)
    picture = np.clip(picture, 0, 255).round().astype(np.uint8)
    return 255 - picture if (rng.random() < 0.5 if dark is None else dark) else picture


@pytest.fixture(scope="module")
def digits():
    """1,000 real digits, uint8 (1000, 28, 28)."""
    return load("sample", offline=True).test.images[:, 0]


@pytest.fixture(scope="module")
def three():
    """A drawing of a 3, dark on white, 400 x 300."""
    image = Image.fromarray(PAPER)
    pen = ImageDraw.Draw(image)
    for box in ((150, 60, 230, 140), (150, 130, 230, 220)):
        pen.arc(box, -140, 130, fill=20, width=14)
    return image


def difference(view, wanted):
    return np.abs(view.pixels.astype(int) - wanted).mean()


def test_an_image_of_mnist_is_not_touched(digits):
    for digit in digits[:20]:
        view = prepare(encode(digit), GREY)
        assert view.untouched
        assert not view.inverted
        np.testing.assert_array_equal(view.pixels, digit[np.newaxis])


def test_an_inverted_image_of_mnist_comes_back(digits):
    views = [prepare(encode(255 - digit), GREY) for digit in digits[:40]]
    assert all(view.inverted and not view.untouched for view in views)
    assert np.mean([difference(view, digit) for view, digit in zip(views, digits, strict=False)]) < 5


@pytest.mark.parametrize("noise", [0, 8])
def test_a_digit_on_uneven_paper_comes_back(digits, noise):
    """The mean difference of a digit moved by one pixel is 25, of one of another class about 40."""
    rng = np.random.default_rng(0)
    for dark in (True, False):
        views = [prepare(encode(on_canvas(digit, rng, noise=noise, dark=dark)), GREY) for digit in digits[:12]]
        assert [view.inverted for view in views] == [dark] * len(views)
        assert np.mean([difference(view, digit) for view, digit in zip(views, digits, strict=False)]) < 10


def test_size_and_place_are_those_of_mnist(three):
    [pixels] = prepare(encode(three), GREY).pixels.astype(float)
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    for axis in (0, 1):  # MNIST's centres of mass lie on pixel 14, the first one being 0
        assert abs(np.average(np.arange(28), weights=pixels.sum(1 - axis)) - 14) <= 0.5
    assert pixels.max() == 255


def test_a_thin_pen_is_widened():
    image = Image.fromarray(PAPER)
    ImageDraw.Draw(image).line([(180, 40), (220, 40), (190, 240)], fill=0, width=3)
    [pixels] = prepare(encode(image), GREY).pixels
    widths = (pixels[6:22] > 100).sum(1)
    assert widths.min() >= 1
    assert 255 >= pixels[6:22].max(1).min() >= 150


@pytest.mark.parametrize("what", ["white", "black", "slope", "noise", "speck", "vignette"])
def test_blank_paper_is_refused(what):
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:300j, -1:1:400j]
    pictures = {
        "white": PAPER,
        "black": 0 * PAPER,
        "slope": 120 + 100 * columns,
        "noise": rng.normal(180, 12, PAPER.shape),
        "speck": np.where((rows**2 + columns**2) < 2e-4, 0, 255),
        "vignette": 240 - 60 * (rows**2 + columns**2),
    }
    with pytest.raises(DataError, match="the image is blank"):
        prepare(encode(np.clip(pictures[what], 0, 255).astype(np.uint8)), GREY)
    with pytest.raises(DataError, match="the image is blank"):
        prepare(encode(np.zeros((28, 28), np.uint8)), GREY)


def test_several_digits_are_told_and_the_largest_is_read(digits):
    rng = np.random.default_rng(1)
    page = PAPER.copy()
    for digit, size, x in ((digits[0], 100, 20), (digits[1], 130, 200)):
        ink = np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC))
        page[80 : 80 + size, x : x + size] = 255 - ink
    view = prepare(encode(page), GREY)
    assert view.warnings == ("2 characters found: the largest is read",)
    alone = prepare(encode(on_canvas(digits[1], rng, size=130, dark=True)), GREY)
    assert difference(view, alone.pixels) < 5


def test_parts_belong_together_and_dirt_does_not():
    """A 5 whose hat was drawn apart, a speck, and a page's dark edge along two sides."""
    image = Image.fromarray(PAPER)
    pen = ImageDraw.Draw(image)
    pen.arc((150, 120, 240, 220), -120, 140, fill=0, width=14)
    pen.line([(162, 60), (162, 120)], fill=0, width=14)
    whole = image.copy()
    for paper in (image, whole):
        ImageDraw.Draw(paper).line([(176, 62), (235, 62)], fill=0, width=14)
    pen.line([(169, 50), (169, 75)], fill=255, width=6)  # the gap
    pen.ellipse((30, 250, 36, 256), fill=0)
    pen.polygon([(0, 0), (60, 0), (0, 40)], fill=40)
    found, wanted = (prepare(encode(paper), GREY) for paper in (image, whole))
    assert found.warnings == ()
    assert difference(found, wanted.pixels) < 8


def test_ink_all_over_is_told():
    page = PAPER.copy()
    page[30:270, 40:360] = 0
    assert "ink covers" in prepare(encode(page), GREY).warnings[0]


def test_colour_models_get_the_middle_square():
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[:, :20], picture[:, 20:80], picture[:, 80:] = 255, (200, 100, 50), 255
    view = prepare(encode(picture), (3, 32, 32))
    assert view.pixels.shape == (3, 32, 32)
    np.testing.assert_array_equal(view.pixels[:, 16, 16], [200, 100, 50])
    assert np.ptp(view.pixels.reshape(3, -1), 1).max() < 20  # of the white beside it, nothing but the filter's rim


@pytest.mark.parametrize("share", [0.0, 0.1, 0.45, 1.0])
def test_boxes_and_areas_of_components(share):
    mask = np.random.default_rng(0).random((30, 17)) < share
    labels, boxes, areas = photo._components(mask)
    np.testing.assert_array_equal(labels > 0, mask)
    assert len(boxes) == len(areas) == labels.max()
    for number, (box, area) in enumerate(zip(boxes, areas, strict=True), 1):
        rows, columns = np.nonzero(labels == number)
        assert list(box) == [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        assert area == len(rows)


def test_corners_touch():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]], bool)
    assert photo._components(mask)[2].tolist() == [2, 1, 1]


FACES = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral", "cmr10")  # they come with matplotlib


def in_face(face, digit, height):
    """Returns a 400 x 300 picture of a printed digit of `height` pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    path = TextPath((0, 0), str(digit), size=100, prop=FontProperties(family=face))
    box = path.get_extents()
    place = Affine2D().translate(-box.x0, -box.y0).scale(height / box.height).translate(120, 50)
    figure = Figure(figsize=(4, 3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 400), ylim=(0, 300))
    axes.axis("off")
    axes.add_patch(PathPatch(place.transform_path(path), facecolor="k", linewidth=0))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., 0].copy()


@pytest.fixture(scope="module")
def good_reader(tmp_path_factory):
    """A cnn2 that MNIST taught with mild augmentation; MNISTFAST_TEST_CHECKPOINT names one that is there."""
    from mnistfast.results.predictor import Predictor

    if there := os.environ.get("MNISTFAST_TEST_CHECKPOINT"):
        return Predictor(there, "cpu")
    from mnistfast import train

    out = tmp_path_factory.mktemp("runs") / "good"
    words = f"--model cnn2 --data mnist --augment mild --epochs 4 --seed 0 --out {out} --offline --quiet"
    assert train.main(words.split()) == 0
    return Predictor(out, "cpu")


@pytest.fixture(scope="module")
def mnist():
    """MNIST's test images, where they are at hand."""
    from mnistfast.errors import StorageError

    with pytest.MonkeyPatch.context() as patch:
        if data := REAL_DATA:
            patch.setenv("MNISTFAST_DATA", data)
        try:
            yield load("mnist", offline=True).test
        except StorageError:
            pytest.skip("MNIST is not at hand: give its folder in MNISTFAST_DATA")


def best(predictor, pixels):
    probabilities = predictor.probabilities([photo.View(view) for view in pixels])
    return np.argmax(probabilities, 1)


@pytest.mark.slow
def test_500_digits_on_uneven_paper_are_read_as_the_originals(mnist, good_reader):
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(mnist.labels))[:500]
    originals = best(good_reader, mnist.images[chosen])
    views = [prepare(encode(on_canvas(mnist.images[index, 0], rng)), GREY).pixels for index in chosen]
    assert (best(good_reader, views) == originals).mean() >= 0.98


@pytest.mark.slow
def test_printed_digits_are_read(mnist, good_reader):
    cases = [(face, digit, height) for face in FACES for digit in range(10) for height in (60, 80, 100, 130, 160, 200)]
    views = [prepare(encode(in_face(*case)), GREY).pixels for case in cases]
    found = best(good_reader, views)
    wrong = [(*case, int(label)) for case, label in zip(cases, found, strict=True) if case[1] != label]
    assert len(wrong) <= 0.05 * len(cases), wrong
