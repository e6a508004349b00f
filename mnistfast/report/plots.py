"""Pictures as PNG bytes. Figures are made without pyplot: no display is touched, and half the import time is saved."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mnistfast.text import printable

COLUMNS = 5  # of the sheet of errors
AS_IT_IS: Any = {"parse_math": False}  # a name with two dollars is no formula


def png(figure: Figure) -> bytes:
    """Returns the figure as a file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def curves(records: Sequence[dict[str, Any]]) -> bytes:
    """Draws loss and accuracy over the epochs of `records` (lines of metrics.jsonl)."""
    figure = Figure(figsize=(9, 3.5))
    epochs = [record["epoch"] for record in records]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in records[0]:
                axes.plot(epochs, [record[key] for record in records], marker="o", markersize=3, label=label)
        axes.set(xlabel="epoch", ylabel=name, xlim=(0.5, len(epochs) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    figure.subplots_adjust(0.07, 0.14, 0.99, 0.96, wspace=0.2)
    return png(figure)


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """Draws a confusion matrix: rows are labels, columns predictions, shade is the share of the row."""
    matrix = np.asarray(counts)
    side = max(4.0, 0.45 * len(classes))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            axes.text(
                column, row, count, ha="center", va="center", size=8, color="w" if shares[row, column] > 0.5 else "k"
            )
    axes.set(xlabel="predicted", ylabel="label", xticks=range(len(classes)), yticks=range(len(classes)))
    names = [printable(name) for name in classes]
    axes.set_xticklabels(names, rotation=90 if max(map(len, names)) > 2 else 0, **AS_IT_IS)
    axes.set_yticklabels(names, **AS_IT_IS)
    return png(figure)


def errors(worst: Sequence[dict[str, Any]], images: np.ndarray) -> bytes:
    """Draws the errors in `worst` (of `metrics.score`) on one sheet.

    All images are on one pair of axes: a pair for each would take ten times as long.

    Args:
        worst: the errors, the worst first.
        images: uint8 (N, C, H, W) of the whole split, C 1 or 3.
    """
    _, channels, height, width = images.shape
    rows = max(1, math.ceil(len(worst) / COLUMNS))
    step_y, step_x = height * 3 // 2, width * 5 // 4  # room for two lines of text above, and a gap beside, each image
    sheet = np.full((rows * step_y, COLUMNS * step_x, channels), 255, np.uint8)
    figure = Figure(figsize=(1.6 * COLUMNS, 1.9 * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for i, error in enumerate(worst):
        top, left = (i // COLUMNS) * step_y + step_y - height, (i % COLUMNS) * step_x + (step_x - width) // 2
        sheet[top : top + height, left : left + width] = images[error["index"]].transpose(1, 2, 0)
        read = printable(f"{error['label']} read as {error['predicted']}")
        text = f"{read}\n{error['confidence']:.0%} sure"
        axes.text(left + width / 2, top - 1, text, ha="center", va="bottom", size=8, **AS_IT_IS)
    if not worst:
        axes.text(sheet.shape[1] / 2, sheet.shape[0] / 2, "no errors", ha="center")
    axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, aspect="auto")
    return png(figure)
