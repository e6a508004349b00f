"""Kernels where they can run, and a cheap import everywhere."""

import subprocess
import sys

import pytest
import torch

from mnistfast.ops.placement import standing_for_gpus, takes_kernel


def test_tensors_of_the_cpu_are_torchs():
    assert not takes_kernel(torch.zeros(1))


def test_a_device_may_stand_for_a_gpu():
    somewhere = torch.zeros(1, device="meta")
    assert not takes_kernel(somewhere)
    with standing_for_gpus("meta"):
        assert takes_kernel(somewhere)
        assert not takes_kernel(torch.zeros(1))
    assert not takes_kernel(somewhere)


@pytest.mark.slow
def test_reading_data_starts_nothing():
    """Neither Triton, which comes with convpool, nor a device."""
    script = (
        "import sys\nimport mnistfast.ops.batch\nimport torch\n"
        "assert 'triton' not in sys.modules\nassert not torch.cuda.is_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
