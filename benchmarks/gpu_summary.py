"""What a kept result of a GPU comes to, for the README: layers and whole steps against the best of torch's forms."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks.gpu_steps.subjects import DTYPES, LARGE, LARGE_BATCH, LAYERS, Layer
from benchmarks.gpu_tables import Evidence, Found, markdown
from convpool.gpu.backend import BACKEND
from convpool.protocol import Plan

_BATCH = 128
_PLAIN = ("eager", "pool_first")
_NUMBERS = ("tf32", "bf16")
_REPLAYED = {  # trainings, each step a replay: what their clock runs over, where that is not all of the training
    "whole-step graph": "",
    "prepared": ", from images on the GPU and a recorded step to final weights,",
}


def summary(result: dict[str, Any], folder: Path) -> str:
    """Tables and what they hold for; `folder`: where the whole result is kept, relative to the README."""
    rows, evidence = result["rows"], Evidence(result)
    lines = [*_layers(rows), *_steps(rows)]
    head = [
        "",
        *(f"{words}, {numbers}" for numbers in _NUMBERS for words in ("torch's best", "convpool", "times faster")),
    ]
    parts = [
        f"On an {evidence.device}, forward and backward pass or whole training step (batch, forward, loss, backward, "
        f"Adam), each replayed as a CUDA graph; batch {_BATCH}, {LARGE_BATCH} for VGG's layers; torch's best of eager "
        "and pool before ReLU, in NCHW and channels_last (torch.compile took no part: there was no time to compile):",
        markdown(head, lines),
    ]
    if trainings := _trainings(rows):
        parts.append(trainings)
    parts.append(f"{_setting(result)} [The whole result]({(folder / 'REPORT.md').as_posix()}).")
    return "\n\n".join(parts)


def _layers(rows: Sequence[Found]) -> list[list[str]]:
    lines = []
    for name in LAYERS:
        cells = [f"layer: {name}"]
        for numbers in _NUMBERS:
            layer = Layer(name, LARGE_BATCH if name in LARGE else _BATCH, numbers, "channels_last")  # type: ignore[arg-type]
            plan = BACKEND.serves(layer.case.geometry, DTYPES[numbers], torch.device("cuda"))
            assert isinstance(plan, Plan)
            found = [
                row
                for row in rows
                if row["step"] == "layers" and _is(row, layer=name, batch=layer.batch, numbers=numbers)
            ]
            cells += _race(_times(found, _PLAIN, "train"), _times(found, (plan.plan,), "train"))
        lines.append(cells)
    return lines


def _steps(rows: Sequence[Found]) -> list[list[str]]:
    steps = [row for row in rows if row["step"] == "whole_steps" and row["batch"] == _BATCH]
    lines = []
    for model in dict.fromkeys(row["model"] for row in steps):
        cells = [f"training step: {model}"]
        for numbers in _NUMBERS:
            found = [row for row in steps if _is(row, model=model, numbers=numbers)]
            ours = [name for row in found for name in row if name.startswith("fused")]
            plain = [name for row in found for name in row if name.startswith(_PLAIN)]
            cells += _race(_times(found, plain, "graph"), _times(found, ours, "graph"))
        lines.append(cells)
    return lines


def _trainings(rows: Sequence[Found]) -> str:
    """One recipe on MNIST, the whole training replayed step by step: ours against the best of torch's."""
    graphs = [
        row
        for row in rows
        if row["step"] == "mnist" and row.get("what") in _REPLAYED and row.get("graph") != "off" and "seconds" in row
    ]
    first = next((row for row in graphs if row["form"].startswith("fused")), None)
    if first is None:
        return ""
    same = [row for row in graphs if _is(row, **{key: first[key] for key in ("model", "batch", "steps", "numbers")})]
    rivals = [row for row in same if not row["form"].startswith("fused")]
    if not rivals:
        return ""
    plain = min(rivals, key=lambda row: median(row["seconds"]))
    ours, theirs = (
        f"{1e3 * median(row['seconds']):.0f} ms (mean accuracy {mean(row['accuracy']):.2%}, n = {len(row['seconds'])})"
        for row in (first, plain)
    )
    return (
        f"Learning MNIST's 60,000 images with `{first['model']}` in {first['steps']} replayed steps of "
        f"{first['batch']}{_REPLAYED[first['what']]} takes {ours}, with the best of torch's forms {theirs}."
    )


def _race(plain: list[float], ours: list[float]) -> list[str]:
    if not plain or not ours:
        return ["not measured"] * 3
    return [f"{min(plain):.1f} µs", f"{min(ours):.1f} µs", f"{min(plain) / min(ours):.2f}"]


def _times(rows: Sequence[Found], forms: Sequence[str], what: str) -> list[float]:
    return [row[form][what]["us"] for row in rows for form in forms if what in row.get(form, {})]


def _is(row: Found, **values: object) -> bool:
    return all(row.get(key) == value for key, value in values.items())


def _setting(result: dict[str, Any]) -> str:
    about = {row.get("what"): row for row in result["rows"] if row["step"] == "environment"}
    versions = about.get("versions", {})
    began = re.sub(r"T.*", "", result.get("began", ""))
    return f"{began}, torch {versions.get('torch')}, Triton {versions.get('triton')}, cuDNN {versions.get('cudnn')}."
