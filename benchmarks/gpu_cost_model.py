"""What the machine code of the Triton kernels would cost on an H100: modelled, not measured.

    python benchmarks/gpu_cost_model.py [--numbers tf32 ...] [--layers cnn-1 ...] [--out FOLDER] [--against FILE]

Each launch of the compile gate's layers, by the plan that the backend's `serves()` names, is compiled for sm_90 without
a GPU. `gpu_cost_terms.py` says what is counted, and what is not. Compare the figures with each other; how they compare
with a real GPU's, docs/measurements.md says. Of the split plan only our own kernels are here, not the vendor's.

`--out` keeps the table: cost_model.json with a row a launch, and cost_model.md to read. `--against` takes such a JSON
file of earlier kernels (results/gpu/cost_model_before.json) and says what became of each layer.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import triton
from gpu_compile_gate import LAYERS, case_of, launches, promises
from gpu_cost_terms import cost, row
from gpu_tables import keep, markdown

Table = list[dict[str, Any]]
TARGET = "sm_90"
NUMBERS = ("tf32", "bfloat16")
LARGE = {"cnn-1": 1024, "cnn-2": 1024}  # layers that are looked at in this batch too
STEP = {"cnn-1": ("input_grad", "expand"), "cnn-2": ()}  # layers of cnn2, and what its training step does not launch
STEP_BATCH = 128
_HEAD = {  # of the page: what a column is called, and its key
    "layer": "layer",
    "batch": "batch",
    "numbers": "numbers",
    "kernel": "kernel",
    "modelled us": "modelled_us",
    "old terms": "old_us",
    "issue": "issue_balanced",
    "matrix": "matrix_balanced",
    "L2": "l2",
    "DRAM": "dram",
    "chain": "chain",
    "waves": "waves",
    "last block": "last_block",
    "programs": "programs",
    "resident": "resident",
    "instructions": "instructions",
    "a product": "instructions_a_product",
}


def tabulate(layers: Iterable[str], numbers: Iterable[str]) -> Table:
    """A row for each launch of a forward and backward pass."""
    found: Table = []
    for promise in promises([TARGET], layers, numbers):
        if promise.layout != LAYERS[promise.layer]:
            continue
        for batch in dict.fromkeys((case_of(promise.layer).batch, LARGE.get(promise.layer, 0))):
            if batch:
                found += _rows(promise.layer, batch, promise.numbers, promise.plan.plan)
    return found


def _rows(layer: str, batch: int, numbers: str, plan: str) -> Table:
    case = case_of(layer, batch)
    g = case.geometry
    products = g.batch * g.pooled_height * g.pooled_width * g.out_channels * g.reduction  # one live position a window
    about = {"layer": layer, "layout": LAYERS[layer], "batch": batch, "numbers": numbers}
    found = [row(cost(each)) for each in launches(case, numbers, LAYERS[layer], plan, TARGET)]
    return [
        about | each | {"instructions_a_product": float(f"{each['instructions'] / products:.3g}")} for each in found
    ]


def steps(table: Table) -> dict[str, tuple[float, float]]:
    """Sums over the kernels of cnn2's training step, by kind of numbers: modelled, and in the old terms."""
    found: dict[str, tuple[float, float]] = {}
    for numbers in dict.fromkeys(each["numbers"] for each in table):
        some = [each for each in table if each["numbers"] == numbers and each["batch"] == STEP_BATCH]
        made = [each for each in some if each["kernel"] not in STEP.get(each["layer"], (each["kernel"],))]
        if {each["layer"] for each in made} == set(STEP):
            found[numbers] = sum(each["modelled_us"] for each in made), sum(each["old_us"] for each in made)
    return found


def passes(table: Table) -> dict[tuple[str, int, str], tuple[float, float]]:
    """Sums over a layer's kernels, by layer, batch and kind of numbers: modelled, and in the old terms."""
    found: dict[tuple[str, int, str], tuple[float, float]] = {}
    for each in table:
        key = each["layer"], each["batch"], each["numbers"]
        modelled, old = found.get(key, (0.0, 0.0))
        found[key] = modelled + each["modelled_us"], old + each["old_us"]
    return found


def comparison(table: Table, before: Table) -> str:
    """Ratios to an earlier table, and the kernels that got slower."""
    was, then = passes(before), steps(before)
    pairs = [(key, now, was[key]) for key, now in passes(table).items() if key in was]
    pairs += [(("a step of cnn2", STEP_BATCH, kind), now, then[kind]) for kind, now in steps(table).items()]
    lines = [
        (*key, *(f"{a:.1f} / {b:.1f}" for a, b in zip(now, earlier, strict=True)), *_ratios(now, earlier))
        for key, now, earlier in pairs
    ]
    head = ("layer", "batch", "numbers", "us / before", "old terms / before", "ratio", "ratio in old terms")
    earlier_us = {_key(each): each["modelled_us"] for each in before}
    slower = [
        f"- slower: {' '.join(map(str, _key(each)))}: {each['modelled_us']} us after {earlier_us[_key(each)]}"
        for each in table
        if each["modelled_us"] > earlier_us.get(_key(each), float("inf"))
    ]
    return "\n".join([markdown(head, lines), "", *(slower or ["No kernel got slower."])]) + "\n"


def _key(each: dict[str, Any]) -> tuple[str, int, str, str]:
    return each["layer"], each["batch"], each["numbers"], each["kernel"]


def _ratios(now: tuple[float, float], earlier: tuple[float, float]) -> list[str]:
    return [f"{a / b:.2f}" for a, b in zip(now, earlier, strict=True)]


def as_markdown(table: Table) -> str:
    lines = [
        "# What the Triton kernels would cost on an H100: modelled, not measured",
        "",
        "By `python benchmarks/gpu_cost_model.py --out benchmarks/results/gpu`, compiled by Triton "
        f"{triton.__version__} for {TARGET}; nothing was run. `gpu_cost_terms.py` says what the model counts and what "
        "it leaves out. Modelled is a node of a graph (1.1 us), the longest of issue, matrix, L2, DRAM and chain times "
        "waves, and the last block. Instructions are warps', in all and for each product of a live window.",
        "",
        markdown(list(_HEAD), [[each[key] for key in _HEAD.values()] for each in table]),
        "",
        "## A training step of cnn2",
        "",
        f"The kernels of its two layers at batch {STEP_BATCH}, the first without dx, microseconds.",
        "",
        markdown(
            ("numbers", "modelled us", "old terms"),
            [(kind, *(f"{sum_:.1f}" for sum_ in sums)) for kind, sums in steps(table).items()],
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Model what the Triton kernels would cost on an H100.")
    parser.add_argument("--numbers", nargs="+", choices=NUMBERS, default=list(NUMBERS))
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--against", type=Path, metavar="FILE")
    options = parser.parse_args()
    table = tabulate(options.layers, options.numbers)
    print(as_markdown(table), end="")
    if options.against:
        print("\n" + comparison(table, json.loads(options.against.read_text())["rows"]), end="")
    if options.out:
        keep(options.out, "cost_model", table, as_markdown(table))


if __name__ == "__main__":
    main()
