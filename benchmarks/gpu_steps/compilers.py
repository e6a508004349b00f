"""Idle CPU cores compile what the steps are about to launch, in the steps' order: they fill Triton's cache.

Each worker goes through the same list and takes what no other has claimed. Nobody waits for them: a kernel that they
have not reached is compiled where it is launched.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_steps.child import end_with_parent
from benchmarks.gpu_steps.children import started
from benchmarks.gpu_steps.table import Step


@contextmanager
def compiling(steps: Sequence[Step], arch: int, workers: int, folder: Path, log: Path) -> Iterator[None]:
    """Inside, so many workers compile for sm_<arch> what the steps launch.

    Args:
        folder: an empty one, in which they leave a file for each thing claimed.
    """
    order = json.dumps({"arch": arch, "folder": str(folder), "rows": [step.rows for step in steps]})
    with ExitStack() as stack:
        for _ in range(workers):
            worker = started(__spec__.name, order, log, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
            stack.enter_context(worker)
        yield


def work(steps: Sequence[str]) -> Iterator[Callable[[], object]]:
    """Launches to be made on tensors of device "meta", in the order in which the steps make them on the GPU.

    Args:
        steps: "module:rows" of each; where the module has a function `ahead`, it knows the launches of `rows`.
    """
    for name in steps:
        module, _, rows = name.partition(":")
        if ahead := getattr(import_module(module), rows.replace("rows", "ahead"), None):
            yield from ahead()


def main(argument: str) -> None:
    """A worker."""
    from triton.backends.compiler import GPUTarget

    from convpool.gpu.offline import compiled_launches

    end_with_parent()
    os.nice(10)  # the process with the GPU goes first
    order = json.loads(argument)
    with compiled_launches(GPUTarget("cuda", order["arch"], 32)) as launched:
        for n, compile_it in enumerate(work(order["rows"])):
            if not _claimed(Path(order["folder"], str(n))):
                with suppress(Exception):  # it is raised again, and heard, where the kernel is launched
                    compile_it()
                launched.clear()


def _claimed(file: Path) -> bool:
    """Whether another worker was first."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


if __name__ == "__main__":
    main(sys.argv[1])
