"""Does the backend compute what torch computes in float64: a representative few of the cases, later all.

The fused plan's sums are exact on integers in float32. The vendor's convolutions of the split plan may be fast
transforms, and half types cannot hold every sum, so these are held to the bound of rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import torch

from benchmarks.gpu_steps.subjects import LAYOUTS, Bench, Rows, precise
from convpool import registry
from convpool.layout import memory_format
from convpool.testing import parity
from convpool.testing.cases import CASES, Case, by_name

REPRESENTATIVE = (
    *("cnn-1", "cnn-2", "lenet5-1", "lenet5-2", "fast-1", "fast-2", "cifar-1", "depthwise", "batch-17"),
    *("pool-overlap-padded", "mixed-3", "resnet-stem", "stride-2-padded", "contiguous-output-16-32", "vgg-5"),
    *("dilation-2-padded", "pool-dilated-overlap", "ceil-padded", "groups-4-stride-2", "pool-255"),
)
DTYPES = ("float32", "bfloat16", "float16", "float64")
LESS_COMMON = ("float16", "float64")
_FEW = 9  # of the representative cases, in the numbers that are less common
# On integers TF32 is exact too: its products are, and they are summed in float32.
NUMBERS = ("tf32", *DTYPES)
Which: TypeAlias = Literal["fused", "split"]  # plan
Check: TypeAlias = tuple[Case, parity.Layout, Which, str]  # the last are the numbers


def _checks(cases: Sequence[Case]) -> Iterator[Check]:
    """In order of value: the fused plan first, in float32 first."""
    plans: tuple[Which, ...] = ("fused", "split")
    for plan in plans:
        for numbers in NUMBERS if plan == "fused" else DTYPES:
            if (plan, numbers) == ("fused", "float64"):
                continue  # not promised: the vendor makes its products
            for case in cases[:_FEW] if numbers in LESS_COMMON else cases:
                for layout in LAYOUTS:
                    yield case, layout, plan, numbers


def _representative() -> list[Check]:
    return [*_checks([by_name(name) for name in REPRESENTATIVE])]


def _others() -> list[Check]:
    return [*_checks([case for case in CASES if case.name not in REPRESENTATIVE])]


def rows(bench: Bench) -> Rows:
    return _rows(bench, _representative())


def more_rows(bench: Bench) -> Rows:
    return _rows(bench, _others())


def _rows(bench: Bench, checks: list[Check]) -> Rows:
    for case, layout, plan, numbers in bench.some([c for c in checks if not bench.rehearses or c[2] == "fused"]):
        key = {"case": case.name, "layout": layout, "plan": plan, "numbers": numbers}
        yield key, partial(_check, bench, case, layout, plan, numbers)


def ahead() -> Iterator[Callable[[], object]]:
    """What a GPU will be asked to launch, on "meta"."""
    return _ahead(_representative())


def more_ahead() -> Iterator[Callable[[], object]]:
    """As `ahead`, for the other cases."""
    return _ahead(_others())


def _ahead(checks: list[Check]) -> Iterator[Callable[[], object]]:
    from benchmarks.gpu_steps.launches import launch_fused, launch_split

    def both(case: Case, layout: parity.Layout, plan: Which, numbers: str) -> None:
        precise("tf32" if numbers == "tf32" else "ieee")
        inputs = parity.make_inputs(case, _dtype(numbers), layout, device="meta")
        if plan == "split":
            launch_split(inputs)
        else:
            launch_fused(inputs, (True, True, case.bias))

    for check in checks:
        yield partial(both, *check)


def _dtype(numbers: str) -> torch.dtype:
    return getattr(torch, numbers.replace("tf32", "float32"))


def _check(bench: Bench, case: Case, layout: parity.Layout, plan: Which, numbers: str) -> dict[str, Any]:
    precise("tf32" if numbers == "tf32" else "ieee")
    dtype, exact = _dtype(numbers), plan == "fused" and numbers in ("tf32", "float32")
    row: dict[str, Any] = {"ok": True}
    for data in ("integers",) if numbers == "tf32" else ("integers", "random"):
        integers = data == "integers"
        inputs = parity.make_inputs(case, dtype, layout, integers=integers, device=bench.device)
        found = compare(inputs, bench.kernels, plan, exact=exact and integers)
        row[data] = {name: float(f"{error:.3g}") for name, error in found.error.items()}
        row["ok"] = row["ok"] and found.ok
    return row


def compare(inputs: parity.Inputs, kernels: str, plan: str, *, exact: bool) -> parity.Parity:
    """Hold a forward and backward pass by this very plan of a backend against the oracle."""
    backend, i, g = registry.backend(kernels), inputs, inputs.geometry
    y, code = backend.forward(i.x, i.weight, i.bias, g, plan, True)
    dy = i.dy.contiguous(memory_format=memory_format(i.x, i.weight, i.settings))
    gradients = backend.backward(dy, code, i.x, i.weight, g, plan, (True, True, i.bias is not None))
    named = dict(zip(("dx", "dw", "db"), gradients[: len(i.tensors)], strict=False))
    return parity.check_results(inputs, y, code, named, exact=exact)
