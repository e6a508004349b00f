"""Idle CPU cores compile what a process with the GPU is about to launch: they fill Triton's cache.

The real launchers run on tensors of device "meta" (`offline`), so what the GPU's process looks up is there: signature,
divisibility of arguments, constants and options are those of its calls. Nobody waits for the workers: a kernel that
they have not reached, or could not compile, is compiled where it is launched.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Literal

import torch
import triton
from triton.backends.compiler import GPUTarget

from convpool.gpu import launch
from convpool.gpu.backend import BACKEND
from convpool.gpu.offline import compiled_launches
from convpool.testing import parity
from convpool.testing.cases import Case
from convpool.testing.isolated import CONTEXT, end_with_caller


@dataclass(frozen=True)
class Work:
    """A forward and backward pass of a case, with all gradients.

    precision: how float32 is multiplied, "ieee" or "tf32".
    plan: the plan whose kernels are wanted; None is the one that the backend chooses.
    """

    case: Case
    dtype: torch.dtype = torch.float32
    layout: parity.Layout = "nchw"
    precision: str = "ieee"
    plan: Literal["fused", "split"] | None = None


@contextmanager
def compiling(
    works: Sequence[Work], *, target: GPUTarget | None = None, workers: int | None = None
) -> Iterator[list[BaseProcess]]:
    """Inside, processes compile `works`, the first ones first; what they have not reached at the end is dropped.

    Yields the processes, which end by themselves when all is compiled. A script that calls this needs
    `if __name__ == "__main__"`.

    Args:
        target: the GPU to compile for; by default the one of this machine.
        workers: how many processes; by default as many as CPU cores, less two for the caller and its GPU's driver.

    Raises:
        RuntimeError: this process interprets Triton's kernels, or finds no GPU and no target is given.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: interpreted kernels are not compiled")
    target = target or triton.runtime.driver.active.get_current_target()
    count = min(len(works), workers or max(1, (os.cpu_count() or 1) - 2))
    # Dealt out beforehand: with a queue between them, one that dies could stop the others and the caller.
    processes: list[BaseProcess] = [
        CONTEXT.Process(target=_compile_all, args=(works[n::count], target), daemon=True) for n in range(count)
    ]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _compile_all(works: Sequence[Work], target: GPUTarget) -> None:
    end_with_caller()
    for work in works:
        with suppress(Exception):  # it is raised again, and heard, where the kernel is launched
            compile_work(work, target)


def compile_work(work: Work, target: GPUTarget) -> int:
    """Compile what the work launches, and count it."""
    torch.backends.cudnn.allow_tf32 = work.precision == "tf32"
    inputs = parity.make_inputs(work.case, work.dtype, work.layout, device="meta")
    x, weight, bias, geometry = inputs.x, inputs.weight, inputs.bias, inputs.geometry
    served = BACKEND.serves(geometry, work.dtype, torch.device("cuda"))
    if isinstance(served, str):
        return 0
    plan = work.plan or served.plan
    with compiled_launches(target) as launched:
        y, code = launch.forward(x, weight, bias, geometry, plan, True)
        launch.backward(y, code, x, weight, geometry, plan, (True, True, bias is not None))
    return len(launched)
