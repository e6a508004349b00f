"""Kernels where they can run, and a cheap import everywhere."""

import subprocess
import sys

import pytest
import torch

from convpool.gpu.backend import INTERPRETED
from mnistfast.ops.placement import takes_kernel


def test_tensors_of_the_cpu_are_torchs():
    assert not takes_kernel(torch.zeros(1))


@pytest.mark.skipif(not INTERPRETED, reason="for a process that interprets")
def test_tensors_without_numbers_are_not_interpreted():
    assert not takes_kernel(torch.zeros(1, device="meta"))


@pytest.mark.slow
def test_importing_starts_nothing():
    """Neither Triton nor a device."""
    script = (
        "import sys\nimport mnistfast.ops.batch, mnistfast.ops.loss, mnistfast.ops.orthogonal\nimport torch\n"
        "assert 'triton' not in sys.modules\nassert not torch.cuda.is_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
