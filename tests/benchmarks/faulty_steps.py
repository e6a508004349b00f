"""Steps that misbehave, for children to run: see test_gpu_evidence."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

Rows = Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]


def good(_: object) -> Rows:
    for n in range(3):
        yield {"n": n}, partial(dict, square=n * n)


def many(_: object) -> Rows:
    """Rows without end, of growing size."""
    n = 0
    while True:
        yield {"n": n}, partial(dict, text="x" * (n % 5000))
        n += 1


def raises(_: object) -> Rows:
    yield {"n": 0}, dict
    raise ValueError("planted: the step itself")


def row_raises(_: object) -> Rows:
    yield {"n": 0}, partial(int, "planted: a row")
    yield {"n": 1}, dict


def hangs(_: object) -> Rows:
    yield {"n": 0}, dict
    yield {"n": 1}, partial(time.sleep, 1000)
    yield {"n": 2}, dict


def aborts(_: object) -> Rows:
    yield {"n": 0}, dict
    yield {"n": 1}, os.abort
    yield {"n": 2}, dict


def always_aborts(_: object) -> Rows:
    for n in range(100):
        yield {"n": n}, os.abort


def slow(_: object) -> Rows:
    """Quick rows, more than its box has room for."""
    while True:
        yield {}, partial(_after, 0.1)


def _after(seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {}


def starts_another(_: object) -> Rows:
    """A process of its own that would outlive it, and a row in which it hangs."""
    import subprocess

    child = subprocess.Popen(["sleep", "1000"])
    yield {"pid": child.pid}, dict
    yield {"n": 1}, partial(time.sleep, 1000)


def wrong_in_bfloat16(bench: Any) -> Rows:
    """The step `parity` on a backend whose kernel is wrong in one dtype."""
    import torch

    from benchmarks.gpu_steps import parity
    from convpool import registry

    backend = registry.backend(bench.kernels)
    right = backend.forward

    def wrong(x: torch.Tensor, *more: Any) -> Any:
        y, code = right(x, *more)
        return (y + 1 if x.dtype == torch.bfloat16 else y), code

    backend.forward = wrong  # type: ignore[method-assign]
    for key, find in parity.rows(type("Bench", (), {"rehearses": False, "some": list, **_where(bench)})()):
        if key["case"] == "lenet5-2" and key["layout"] == "nchw":
            yield key, find


def _where(bench: Any) -> dict[str, Any]:
    return {"device": bench.device, "kernels": bench.kernels}


def sweep_with_a_bad_candidate(bench: Any) -> Rows:
    """The step `sweep` with a launch that no compiler accepts among the others."""
    from dataclasses import replace

    from benchmarks.gpu_steps import sweep
    from convpool.gpu.config import Launch

    def around(_: str, shipped: Launch, __: int) -> list[Launch]:
        return [shipped, replace(shipped, warps=3)]

    sweep.singles = sweep.pairs = around  # type: ignore[assignment]
    yield from sweep.rows(bench)


def loses_the_gpu(_: object) -> Rows:
    """A row after which nothing else in the process can use the GPU."""
    from convpool.testing import isolated

    pid = os.getpid()
    yield {"n": 0, "pid": pid}, dict
    isolated.gpu_is_lost = lambda: True
    yield {"n": 1, "pid": pid}, partial(int, "planted: an illegal address")
    yield {"n": 2, "pid": pid}, dict


def tells_its_process(_: object) -> Rows:
    yield {"pid": os.getpid()}, dict
    yield {}, partial(time.sleep, 1000)
