"""Launches around the shipped one: one factor at a time, then pairs that go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from convpool.gpu.config import Launch

# By kernel, the values of each factor.
FACTORS: dict[str, dict[str, tuple[int, ...]]] = {
    "forward_direct": {"rows": (16, 32, 64, 128, 256, 512), "channels": (2, 4, 8, 16, 32), "warps": (1, 2, 4, 8)},
    "forward_patch": {
        "rows": (16, 32, 64),
        "columns": (16, 32, 64),
        "summed": (16, 32),
        "warps": (2, 4, 8),
        "stages": (2, 3),
    },
    "forward_dot": {
        "rows": (4, 8, 16, 32, 64),
        "columns": (16, 32, 64, 128),
        "summed": (16, 32, 64),
        "warps": (2, 4, 8),
        "stages": (1, 2, 3, 4, 5),
    },
    "weight_grad": {
        "rows": (16, 32, 64, 128),
        "columns": (16, 32, 64, 128),
        "summed": (16, 32, 64, 128),
        "warps": (2, 4, 8),
        "stages": (1, 2, 3, 4),
        "ranges": (16, 33, 66, 132, 264, 528, 1056),
        "registers": (0, 128, 255),
    },
    "sum_partials": {"rows": (8, 16, 32, 64, 128, 256), "columns": (8, 16, 32, 64, 128), "warps": (1, 2, 4, 8)},
    "input_grad": {
        "rows": (16, 32, 64, 128),
        "columns": (16, 32, 64, 128),
        "summed": (16, 32, 64),
        "warps": (2, 4, 8),
        "stages": (1, 2, 3, 4),
        "registers": (0, 128, 255),
    },
}
# By kernel, the factors that are changed together: small blocks want few warps, long loops want stages.
PAIRS: dict[str, tuple[dict[str, tuple[int, ...]], ...]] = {
    "forward_direct": ({"rows": (32, 64, 128, 256), "channels": (4, 8, 16), "warps": (1, 2, 4)},),
    "forward_patch": ({"rows": (16, 32), "columns": (32, 64), "warps": (2, 4, 8), "stages": (2, 3)},),
    "forward_dot": (
        {"rows": (4, 8, 16, 32), "warps": (4, 8), "stages": (2, 3, 4)},
        {"columns": (32, 64), "summed": (16, 32, 64), "stages": (2, 3)},
    ),
    "weight_grad": (
        {"summed": (16, 32, 64), "stages": (2, 3, 4), "registers": (0,)},
        {"rows": (16, 32, 64), "columns": (32, 64, 128), "warps": (4, 8)},
        {"ranges": (66, 132, 264, 528), "stages": (2, 3), "registers": (0,)},
    ),
    "input_grad": (
        {"summed": (16, 32, 64), "stages": (2, 3), "registers": (0,)},
        {"rows": (32, 64, 128), "columns": (32, 64), "warps": (2, 4, 8)},
    ),
}


def singles(kernel: str, shipped: Launch, outputs: int) -> list[Launch]:
    """The shipped launch first, then those that differ from it in one factor; `outputs`: the layer's channels."""
    factors = [{name: values} for name, values in FACTORS[kernel].items()]
    return list(dict.fromkeys([shipped, *_sensible(kernel, shipped, factors, outputs)]))


def pairs(kernel: str, shipped: Launch, outputs: int) -> list[Launch]:
    """Those that differ in factors that go together and are not among `singles`."""
    known = singles(kernel, shipped, outputs)
    found = dict.fromkeys(_sensible(kernel, shipped, PAIRS.get(kernel, ()), outputs))
    return [launch for launch in found if launch not in known]


def changes(kernel: str, shipped: Launch, launch: Launch) -> dict[str, int]:
    """By factor, in what a launch differs from the shipped one."""
    names = FACTORS[kernel]
    return {name: getattr(launch, name) for name in names if getattr(launch, name) != getattr(shipped, name)}


def _changed(kernel: str, shipped: Launch, values: dict[str, tuple[int, ...]]) -> Iterator[Launch]:
    for chosen in product(*values.values()):
        launch = replace(shipped, **dict(zip(values, chosen, strict=True)))
        # Of a channels_last output a program of forward_direct has its channels side by side: they are its columns.
        yield replace(launch, columns=launch.channels) if kernel == "forward_direct" and shipped.columns > 1 else launch


def _sensible(
    kernel: str, shipped: Launch, grids: Sequence[dict[str, tuple[int, ...]]], outputs: int
) -> Iterator[Launch]:
    """The launches of some grids that do not spend a program on channels that the layer has not got."""
    for values in grids:
        for launch in _changed(kernel, shipped, values):
            if kernel != "forward_direct" or launch.channels <= max(4, 2 * outputs):
                yield launch
