"""Which device a name means."""

import pytest
import torch

from mnistfast.devices import choose_device, environment, fast_format, use_threads
from mnistfast.errors import DeviceError, UsageError


def test_auto_and_cpu(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    for there, kind in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto").type == kind


def test_the_first_process_has_the_first_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", local=0).type == "cuda"


def test_weights_lie_as_the_kernels_want_them():
    assert fast_format(torch.device("cpu")) == fast_format(torch.device("cuda:1")) == torch.channels_last
    assert fast_format(torch.device("mps")) == torch.preserve_format


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there():
    with pytest.raises(DeviceError, match=r"device cuda is not usable here. .* FIX: --device cpu"):
        choose_device("cuda")


def test_no_such_device():
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        choose_device("gpu")


def test_environment():
    assert use_threads(1) == use_threads(None) == 1
    found = environment(torch.device("cpu"), 1)
    assert (found["torch"], found["device"], found["threads"]) == (torch.__version__, "cpu", 1)
