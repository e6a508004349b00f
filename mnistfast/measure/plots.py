"""Pictures of what was measured, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mnistfast.measure import trust
from mnistfast.measure.forms import FUSED, FUSED_LAST
from mnistfast.measure.page import best_other, eager, launched
from mnistfast.report.plots import png

Row = Mapping[str, Any]

GROWTH = "growth with "
MARKS = {FUSED: "o", FUSED_LAST: "s"}


def pictures(rows: Sequence[Row]) -> dict[str, tuple[str, bytes]]:
    """Returns those pictures for which `rows` has figures: by title, the name of the file and its content."""
    growing = [row for row in rows if row["group"].startswith(GROWTH)]
    fixed = [row for row in rows if not row["group"].startswith(GROWTH)]
    layers = [row for row in fixed if "work" in row]
    wanted = {
        "Times faster than torch's own forms": ("speedup.png", speedups, fixed),
        "Roofline": ("roofline.png", roofline, layers),
        "Growth with batch and with channels": ("growth.png", growth, growing),
    }
    return {title: (name, draw(shown)) for title, (name, draw, shown) in wanted.items() if shown}


def speedups(rows: Sequence[Row]) -> bytes:
    """Draws how much faster the fused layers are than torch's forms."""
    figure = Figure(figsize=(9, 1.5 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    for offset, (label, other) in zip((-0.2, 0.2), (("eager", eager), ("the best other", best_other)), strict=True):
        ratios = [trust.times_faster(row["seconds"], launched(row, FUSED), other(row)) for row in rows]
        bars = axes.barh(places + offset, [ratio or 0 for ratio in ratios], 0.38, label=f"than {label}")
        words = [f"{ratio:.2f}" if ratio else trust.NOT_STEADY for ratio in ratios]
        axes.bar_label(bars, words, size=7, padding=2)
    axes.axvline(1, color="k", linewidth=0.8)
    axes.set(xlabel="times faster, convpool in NCHW", yticks=places)
    axes.set_yticklabels([f"{row['group']}: {row['name']}" for row in rows], size=8)
    axes.invert_yaxis()
    axes.legend()
    return png(figure)


def roofline(rows: Sequence[Row]) -> bytes:
    """Draws operations a second over operations a byte: fused layers, eager, and the bound of each."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    intensity = [row["work"]["flops"] / row["work"]["bytes"] for row in rows]
    for form, mark in (("eager", "x"), *MARKS.items()):
        reached = [_rate(row, form) for row in rows]
        axes.plot(intensity, reached, mark, label=form, markersize=5)
    bounds = [row["work"]["flops"] / row["bound_seconds"] / 1e9 for row in rows]
    axes.plot(intensity, bounds, "_", color="k", markersize=14, label="bound: peak rate, bandwidth at its size")
    for row, x, y in zip(rows, intensity, bounds, strict=True):
        short = row["name"] + ("" if row["group"].endswith("training") else " (inference)")
        short += f", {trust.NOT_STEADY}" * any(np.isnan(_rate(row, form)) for form in ("eager", *MARKS))
        axes.annotate(short, (x, y), textcoords="offset points", xytext=(0, 4), size=6, ha="center", rotation=30)
    axes.set(xscale="log", yscale="log", xlabel="necessary operations a byte", ylabel="GFLOP/s of necessary operations")
    axes.margins(y=0.15)  # room for the names
    axes.legend()
    return png(figure)


def _rate(row: Row, form: str) -> float:
    """Returns necessary GFLOP/s, NaN where the form's time is not steady: matplotlib draws no mark there."""
    timing = row["seconds"][form]
    return row["work"]["flops"] / timing["median"] / 1e9 if trust.steady(timing) else np.nan


def growth(rows: Sequence[Row]) -> bytes:
    """Draws how the gain changes with the batch and with the channels."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("batch", "channels"), strict=True):
        row_of_sizes = [row for row in rows if row["group"] == GROWTH + what]
        sizes, unsteady = [int(row["name"]) for row in row_of_sizes], np.zeros(len(row_of_sizes), bool)
        for form, mark in MARKS.items():
            for other, style in ((eager, "-"), (best_other, "--")):
                ratios = [trust.times_faster(row["seconds"], form, other(row)) for row in row_of_sizes]
                values = np.array(ratios, float)  # None becomes NaN, which matplotlib leaves out
                unsteady |= np.isnan(values)
                than = "eager" if other is eager else "the best other"
                axes.plot(sizes, values, mark + style, label=f"{form}, than {than}")
        axes.axhline(1, color="k", linewidth=0.8)
        axes.set(xlabel=what, ylabel="times faster, forward and backward", xscale="log", xticks=sizes)
        axes.set_xticklabels(
            [f"{n}\n{trust.NOT_STEADY}" if lacks else n for n, lacks in zip(sizes, unsteady, strict=True)]
        )
        axes.minorticks_off()
        axes.legend(fontsize=7)
    return png(figure)
