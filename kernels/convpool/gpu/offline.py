"""Compile the real launches for GPUs that are not there: what a kernel takes of a device can be read from its machine
code.

The launchers run on tensors of device "meta" while every launch stops after compilation, so the signature, the
divisibility of arguments and the constants are those of a true call. Nothing is executed. Needs a process without
TRITON_INTERPRET.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from convpool.gpu.prepared import ordinary_launches
from convpool.torch_private import forget_driver

TARGETS = {
    **{f"sm_{capability}": GPUTarget("cuda", capability, 32) for capability in (75, 80, 86, 89, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"


@dataclass(frozen=True)
class Launched:
    """One launch: the compiled kernel, its grid and the arguments it was given by name."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.metadata.name

    @property
    def warps(self) -> int:
        return self.kernel.metadata.num_warps


@dataclass(frozen=True)
class Resources:
    """What one block takes: registers a thread, bytes of registers spilled a thread, bytes of shared memory."""

    registers: int
    spilled: int
    shared: int


@contextmanager
def compiled_launches(target: GPUTarget) -> Iterator[list[Launched]]:
    """Inside, launches are compiled for `target` and collected instead of being run."""
    launched: list[Launched] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        launched.append(Launched(kernel, prod(grid), arguments))
        return kernel

    JITFunction.run = compile_only
    driver.set_active(_Driver(target))
    try:
        with ordinary_launches():
            yield launched
    finally:
        JITFunction.run = run
        forget_driver(driver)


class _Driver:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int | str:
        return self.target.arch  # compiled kernels are cached by device

    def get_current_stream(self, device: int | str) -> int:
        return 0


def resources(kernel: Any) -> Resources:
    """Read from the machine code. ptxas reports spills as stack; an AMD kernel says so itself.

    A stack that no instruction touches is not counted: for float32's dot products LLVM declares one byte of local
    memory that nothing uses, and ptxas sets 8 aside for it.
    """
    shared = kernel.metadata.shared
    if kernel.metadata.target.backend == "cuda":
        usage = _disassemble(kernel, "cuobjdump", "-res-usage")
        found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        registers, stack, local = map(int, found[0])
        touched = stack + local > 0 and re.search(r"\b(STL|LDL)\b", machine_code(kernel))
        return Resources(registers, stack + local if touched else 0, shared)

    def entry(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", kernel.asm["amdgcn"])[0])

    return Resources(entry("vgpr_count"), 4 * entry("vgpr_spill_count") + entry("private_segment_fixed_size"), shared)


def uses_matrix_unit(kernel: Any) -> bool:
    """Whether it multiplies tiles by matrix instructions: PTX's, which ptxas translates one by one, or GCN's."""
    if kernel.metadata.target.backend == "cuda":
        return re.search(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", kernel.asm["ptx"]) is not None
    return "v_mfma" in kernel.asm["amdgcn"]


def machine_code(kernel: Any) -> str:
    """Assembly with labels: SASS for NVIDIA, each instruction with its encoding, GCN for AMD."""
    if kernel.metadata.target.backend == "cuda":
        return _disassemble(kernel, "nvdisasm", "-c", "-hex")
    return kernel.asm["amdgcn"]


def _disassemble(kernel: Any, tool: str, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([_TOOLS / tool, *options, file.name], capture_output=True, text=True, check=True).stdout
