"""The kernels beside inaccessible pages, for each instruction set in a process of its own; see guard_pages.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convpool.cpu import library, native
from convpool.cpu.kernels import Kernel

missing = native.BACKEND.unavailable()
pytestmark = [
    pytest.mark.skipif(missing is not None, reason=f"cpu: {missing}"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages by Linux's mprotect"),
]
KERNELS = [kernel.name.lower() for kernel in Kernel]


def run(count: int, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("guard_pages.py")), f"--count={count}", *arguments]
    env = os.environ | {"OMP_WAIT_POLICY": "passive"} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)


def passes(result: subprocess.CompletedProcess[str]) -> str:
    """Its last line, printed; where it fails, also the geometry at which it did."""
    last = result.stdout.splitlines()[-1]
    print(last)
    assert result.returncode == 0, f"{last}\n{result.stderr[-3000:]}"
    return last


@pytest.mark.slow
@pytest.mark.parametrize("isa", library._INSTRUCTION_SETS)
def test_every_kernel_stays_inside_its_tensors(isa: str) -> None:
    found = torch.backends.cpu.get_cpu_capability()
    if library._rank(found) < library._rank(library._INSTRUCTION_SETS[isa]):
        pytest.skip(f"the processor has {found}")
    summary = passes(run(900, CONVPOOL_CPU_ISA=isa))
    assert all(f" {kernel} " in summary for kernel in KERNELS)


@pytest.mark.slow
def test_a_few_geometries() -> None:
    passes(run(20))


@pytest.mark.slow
def test_a_read_beyond_a_tensor_ends_the_process_and_names_the_geometry() -> None:
    result = run(20, "--fault=read")
    assert result.returncode == -signal.SIGSEGV
    assert result.stdout.splitlines()[-1].startswith("seed ")
    assert "Segmentation fault" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("write", "wrote beside its result"),
        ("input", "wrote to its input"),
        ("idle", "differs between two calls"),
    ],
)
def test_other_faults_are_found(fault: str, words: str) -> None:
    result = run(20, f"--fault={fault}")
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith("seed ")
    assert words in result.stderr
