"""A torch that lacks a private name gets the same results; this one has them all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convpool import torch_private


def test_none_is_missing_here() -> None:
    """Else a fast path would be off, and nothing but time would tell."""
    assert torch_private.missing() == ()
    assert torch_private.unseen(torch.ones(2), torch.nn.Parameter(torch.ones(2)))
    with torch.inference_mode():
        assert torch_private.unseen(torch.ones(2))


@pytest.mark.slow
def test_each_name_and_all_may_be_missing() -> None:
    """In processes of their own: see the program that they run."""
    names = list(torch_private._asked)
    program = Path(__file__).with_name("without_private_names.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, program, "", *names, "+".join(names)]
    result = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 0, result.stderr
