"""Pictures show what they are given."""

import io

import numpy as np
import pytest
from PIL import Image

from mnistfast.report import plots

RECORDS = [
    {"epoch": i, "loss": 1 / i, "accuracy": 1 - 1 / i, "val_loss": 2 / i, "val_accuracy": 0.5} for i in (1, 2, 3)
]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def has_colour(picture, colour):
    return bool((np.abs(picture - colour).sum(-1) < 10).any())


ORANGE = (255, 127, 14)  # matplotlib's second line


def test_curves():
    assert has_colour(pixels(plots.curves(RECORDS)), ORANGE)
    assert not has_colour(pixels(plots.curves([{"epoch": 1, "loss": 1.0, "accuracy": 0.5}])), ORANGE)


def test_confusion():
    even = pixels(plots.confusion([[5, 5], [5, 5]], ("cat", "dog")))
    diagonal = pixels(plots.confusion([[10, 0], [0, 0]], ("0", "1")))
    darkest = (8, 48, 107)  # the end of the scale: a whole row
    assert has_colour(diagonal, darkest)
    assert not has_colour(even, darkest)


def error(index):
    return {"index": index, "label": "3", "predicted": "5", "confidence": 0.75}


@pytest.mark.parametrize("channels", [1, 3])
def test_errors(channels):
    images = np.zeros((30, channels, 28, 28), np.uint8)
    images[:, 0] = 200
    one, many = (pixels(plots.errors([error(i) for i in range(count)], images)) for count in (1, 25))
    assert many.shape[0] == 5 * one.shape[0]
    assert has_colour(one, (200, 200, 200) if channels == 1 else (200, 0, 0))


def test_no_errors():
    picture = pixels(plots.errors([], np.zeros((1, 1, 28, 28), np.uint8)))
    assert 0 < (picture.sum(-1) < 300).mean() < 0.05  # a few words


@pytest.mark.parametrize("name", ["$\\frac$", "$x$", "\x1b[31m", "a\nb"])
@pytest.mark.filterwarnings("error")
def test_names_are_no_formulas(name):
    plots.confusion([[1, 1], [0, 2]], (name, "b"))
    plots.errors([error(0) | {"label": name, "predicted": name}], np.zeros((1, 1, 28, 28), np.uint8))
