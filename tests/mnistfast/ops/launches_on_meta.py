"""Prints what the operations launch on tensors that stand for a GPU's, as JSON; run by test_launches.py.

In a process that does not interpret, under a stand-in for Triton's compiler: {call: [launches, kernels compiled]}. The
calls follow one another, so what a kernel was compiled for before is there already.
"""

import json
from collections.abc import Callable

import triton
from gpu_step_operations import LAST, NCHW, batch, loss, muon
from triton.backends.compiler import GPUTarget

from convpool.gpu.offline import compiled_launches
from mnistfast.ops.placement import standing_for_gpus

CALLS: dict[str, Callable[[], None]] = {
    "a batch": lambda: batch(slice(0, 128), 3, 32, LAST),
    "the last batch": lambda: batch(slice(0, 77), 3, 32, LAST),
    "a process' rows": lambda: batch(slice(33, 34), 3, 32, LAST),
    "no rows": lambda: batch(slice(5, 5), 3, 32, LAST),
    "a loss": lambda: loss(slice(0, 128), 128, 10),
    "the last loss": lambda: loss(slice(0, 77), 77, 10),
    "a process' loss": lambda: loss(slice(33, 34), 128, 10),
    "no rows' loss": lambda: loss(slice(1, 1), 1, 10),
    "a loss of very many classes": lambda: loss(slice(0, 8), 8, 1025),
    "a kernel": lambda: muon(64, 16, 3, 3),
    "the same kernel": lambda: muon(64, 16, 3, 3),
    "a kernel in channels_last": lambda: muon(64, 16, 3, 3, formats=(LAST, LAST, LAST)),
    "a kernel in two formats": lambda: muon(64, 16, 3, 3, formats=(LAST, LAST, NCHW)),
    "a kernel of many rows": lambda: muon(65, 16, 3, 3),
    "a kernel of long rows": lambda: muon(64, 65, 3, 3),
}


def main() -> None:
    names: list[str] = []
    triton.compiler.compile = lambda source, **_: names.append(source.fn.__name__) or object()
    found = {}
    with compiled_launches(GPUTarget("cuda", 90, 32)) as launched, standing_for_gpus("meta"):
        for name, call in CALLS.items():
            launches, kernels = len(launched), len(names)
            call()
            found[name] = [len(launched) - launches, len(names) - kernels]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
