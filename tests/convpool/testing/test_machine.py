"""What is set in a process that measures, what is said of it, and that saying it sets nothing."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("before", ["none", pytest.param("tf32", marks=pytest.mark.slow)])
def test_pinned_precision_can_be_read_by_everyone(before) -> None:
    """In a process of its own: torch's flags are the process', and it may have asked for TF32 everywhere."""
    script = f"""
import torch
from convpool.testing.machine import pin_precision
torch.backends.fp32_precision = {before!r}
pin_precision(torch.device("cuda"))
cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
assert (cudnn.allow_tf32, matmul.allow_tf32, torch.get_float32_matmul_precision()) == (False, False, "highest")
assert [one.fp32_precision for one in (cudnn.conv, cudnn.rnn, matmul)] == ["ieee"] * 3
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_the_setting_names_the_allocator_in_force_and_leaves_it() -> None:
    script = """
import torch
from convpool.testing import keep_freed_memory, setting
cpu = torch.device("cpu")
assert setting(cpu) == setting(cpu) and setting(cpu).endswith(", default allocator"), setting(cpu)
keep_freed_memory()
assert setting(cpu).endswith(", allocator that keeps freed memory"), setting(cpu)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
