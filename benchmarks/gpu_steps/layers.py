"""Each layer by either plan and by torch's own layers: replayed, in training and inference, and with the host's time.

The inputs lie in the cache, as they do in a network, where the layer before has just written them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_steps.subjects import LARGE_BATCH, Bench, Layer, Rows, layers, precise
from convpool import eager
from convpool.autograd import apply_unseen
from convpool.known import Call
from convpool.testing.parity import Inputs

PLAIN = {"eager": eager.relu_then_pool, "pool_first": eager.pool_then_relu}
# Of the difference to torch's own result in the same numbers, as a share of its norm: nearly equal values swap ranks.
LIMITS = {"tf32": 5e-2, "bf16": 1e-1, "ieee": 1e-3}
_HOST_TIMED = (128, LARGE_BATCH, 2)  # batches at which the host's time is taken: it is the same at every other


def rows(bench: Bench) -> Rows:
    for layer in bench.some(layers(bench)):
        yield layer.key, partial(_measure, bench, layer)


def ahead() -> Iterator[Callable[[], object]]:
    """What a GPU will be asked to launch, on "meta"."""
    from benchmarks.gpu_steps.launches import launch_fused, launch_split

    def both(layer: Layer) -> None:
        precise(layer.numbers)
        inputs = layer.inputs("meta")
        launch_fused(inputs, (layer.dx, True, True))
        launch_split(inputs)

    for layer in layers(Bench("cuda")):
        yield partial(both, layer)


def forms(inputs: Inputs, dx: bool, bench: Bench) -> dict[str, dict[str, Callable[[], Any]]]:
    """By form, the calls "train" (forward and backward) and "infer"."""
    x, weight, bias = (t.detach().requires_grad_() for t in inputs.tensors)
    x.requires_grad_(dx)
    wanted = [x, weight, bias] if dx else [weight, bias]

    def calls(layer: Callable[..., Tensor], *more: Any) -> dict[str, Callable[[], Any]]:
        def infer() -> list[Tensor]:
            with torch.no_grad():
                return [layer(x, weight, bias, *more)]

        return {"train": lambda: torch.autograd.grad(layer(x, weight, bias, *more), wanted, inputs.dy), "infer": infer}

    found = {name: calls(layer, inputs.settings) for name, layer in PLAIN.items()}
    for name, call in kernel_calls(bench).items():
        found[name] = calls(partial(apply_unseen, Call(inputs.geometry, call, x, weight, bias)))
    return found


def kernel_calls(bench: Bench) -> dict[str, str]:
    """What names the plans of the backend under test to the op (`Plan.call`), by plan."""
    if bench.rehearses:
        return {"fused": "reference/reference"}
    return {plan: f"{bench.kernels}/{plan}" for plan in ("fused", "split")}


def _measure(bench: Bench, layer: Layer) -> dict[str, Any]:
    precise(layer.numbers)
    calls = forms(layer.inputs(bench.device), layer.dx, bench)
    row: dict[str, Any] = {}
    want: list[Tensor] | None = None
    for name, call in list(calls.items()):
        try:
            got = [*call["infer"](), *call["train"]()]
            want = want or got
            error = max(map(_difference, got, want))
            row[name] = {"error": round(error, 5)}
            if not error <= LIMITS[layer.numbers]:
                row[name]["failed"] = "wrong result"
        except Exception as failure:
            row[name] = {"failed": f"{type(failure).__name__}: {str(failure)[:200]}"}
        if "failed" in row[name]:
            del calls[name]  # no time for what is wrong
    for what, times in (("train", 8), ("infer", 20)):
        for name, time in bench.race({name: call[what] for name, call in calls.items()}, times=times).items():
            row[name][what] = time
    if layer.batch in _HOST_TIMED and layer.numbers == "tf32":
        for name, time in bench.race({name: call["train"] for name, call in calls.items()}, replay=False).items():
            row[name]["host"] = time
    return row


def _difference(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want.float()).norm() / want.float().norm().clamp_min(1e-30))
