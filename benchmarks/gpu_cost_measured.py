"""How the cost model's figures compare with a GPU's: measured over modelled, for the new terms and for the old ones.

    PYTHONPATH=kernels:. python benchmarks/gpu_cost_measured.py [--evidence FILE]

Takes the kernels step of a result of `gpu_evidence.py` (results/gpu/nvidia-h200/evidence.json): each of our kernels
alone, its arguments in the L2 cache where they fit. Rows count whose grid and warps are still those of today's
launches. Prints a table for docs/measurements.md.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import exp, log
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for benchmarks.gpu_steps

from gpu_compile_gate import launches
from gpu_cost_terms import Cost, cost
from gpu_tables import KEPT, markdown

from benchmarks.gpu_steps.subjects import LAYERS

EVIDENCE = KEPT / "nvidia-h200" / "evidence.json"
_NUMBERS = {"tf32": "tf32", "bf16": "bfloat16"}  # of the evidence, by the model's name


@dataclass(frozen=True)
class Pair:
    """One launch: microseconds that a GPU took, and what the model counts."""

    layer: str
    batch: int
    numbers: str
    measured: float
    cost: Cost


def pairs(rows: Sequence[dict[str, Any]]) -> tuple[list[Pair], int]:
    """The measured launches that are still made, and how many others there are."""
    found, others = [], 0
    for row in rows:
        if row["step"] != "kernels" or row.get("by") != "ours":
            continue
        case = replace(LAYERS[row["layer"]], batch=row["batch"])
        made = [
            each
            for plan in ("fused", "split")
            for each in launches(case, _NUMBERS[row["numbers"]], row["layout"], plan, "sm_90")
        ]
        for measured in row["kernels"]:
            same = (measured["kernel"], measured["grid"], measured["warps"])
            launched = next((each for each in made if (each.name, [each.programs], each.warps) == same), None)
            if launched:
                found.append(Pair(row["layer"], row["batch"], row["numbers"], measured["us"], cost(launched)))
            else:
                others += 1
    return found, others


def table(found: Sequence[Pair]) -> str:
    """Geometric mean and spread of measured over modelled, and rank correlation, over all and by kernel."""
    by_kernel = sorted(found, key=lambda pair: pair.cost.kernel)
    groups = [("all", list(found))] + [
        (name, list(some)) for name, some in groupby(by_kernel, key=lambda pair: pair.cost.kernel)
    ]
    head = ["kernel", "launches"]
    for terms in ("new", "old"):
        head += [f"{terms}: mean", "p10", "p90", "rank"]
    lines = []
    for name, some in groups:
        measured = [pair.measured for pair in some]
        cells: list[object] = [name, len(some)]
        for figure in _FIGURES:
            modelled = [figure(pair.cost) for pair in some]
            ratios = [a / b for a, b in zip(measured, modelled, strict=True)]
            tenths = quantiles(ratios, n=10, method="inclusive")
            spread = exp(fmean(log(ratio) for ratio in ratios)), tenths[0], tenths[-1]
            cells += [*(f"{each:.2f}" for each in spread), f"{rank_correlation(measured, modelled):.2f}"]
        lines.append(cells)
    return markdown(head, lines)


_FIGURES: tuple[Callable[[Cost], float], ...] = (lambda cost: cost.modelled, lambda cost: max(cost.old, 0.01))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, those of equal values shared."""
    x, y = _ranks(a), _ranks(b)
    mean = (len(x) + 1) / 2
    both = sum((p - mean) * (q - mean) for p, q in zip(x, y, strict=True))
    return both / (sum((p - mean) ** 2 for p in x) * sum((q - mean) ** 2 for q in y)) ** 0.5


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [(ordered.index(value) + 1 + len(ordered) - ordered[::-1].index(value)) / 2 for value in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evidence", type=Path, default=EVIDENCE, metavar="FILE")
    options = parser.parse_args()
    found, others = pairs(json.loads(options.evidence.read_text())["rows"])
    print(table(found))
    print(f"\n{others} other launches were measured that are not made any more.\n")
    worst = sorted(found, key=lambda pair: pair.measured / pair.cost.modelled)
    lines = [
        (pair.layer, pair.batch, pair.numbers, pair.cost.kernel, pair.measured, pair.cost.modelled, pair.cost.old)
        for pair in worst
    ]
    print(markdown(("layer", "batch", "numbers", "kernel", "measured us", "modelled us", "old terms"), lines))


if __name__ == "__main__":
    main()
