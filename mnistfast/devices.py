"""Which device a run uses, and what there is to say about the machine."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
import torch

from mnistfast import __version__
from mnistfast.errors import DeviceError, UsageError
from mnistfast.options.device import DEVICES, device_type


def fast_format(device: torch.device) -> torch.memory_format:
    """Returns how the weights of a model that learns on `device` should lie.

    channels_last is the fused kernels' own: on a CPU a step of `cnn2` takes a tenth less in it, and a GPU's need half
    the instructions, by their compiled code, and cuDNN no transposition.
    """
    return torch.channels_last if device.type in ("cpu", "cuda") else torch.preserve_format


def choose_device(name: str, local: int = 0) -> torch.device:
    """Returns the device called `name`; `auto` is a CUDA device where there is one, else the CPU.

    Of several processes on one machine the one numbered `local` gets the CUDA device of that number, and works on it.

    Raises:
        UsageError: no device is called that.
        DeviceError: the device is not there.
    """
    if name == "auto" and not local:
        return torch.device(device_type(name))
    if name in ("auto", "cuda") and local:
        name = f"cuda:{local}" if device_type(name) == "cuda" else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device {name!r}", f"--device takes {DEVICES}")
    try:
        torch.empty(1, device=device)
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # which one depends on how torch was built
        raise DeviceError(f"device {name} is not usable here", str(error).splitlines()[0], "--device cpu") from error
    return device


def can_replay(device: torch.device) -> bool:
    """Returns whether `device` can record its work as a graph and replay it."""
    return device.type == "cuda"


def check_graph(graph: str, device: torch.device) -> None:
    """Refuses to replay steps where there is nothing that replays them.

    Raises:
        DeviceError: `graph`, the option's value, is on, and `device` is no GPU of CUDA.
    """
    if graph == "on" and not can_replay(device):
        raise DeviceError("--graph on needs a GPU", f"CUDA records steps, {device} does not", "--graph auto")


def use_threads(count: int | None) -> int:
    """Sets the number of CPU threads (None leaves torch's choice) and returns it."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def use_deterministic() -> None:
    """Makes torch refuse algorithms whose bits differ from one time to the next, for the rest of the process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def environment(device: torch.device, threads: int, processes: int = 1) -> dict[str, Any]:
    """Returns the versions and the hardware that a result depends on."""
    return {
        "mnistfast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": threads,
        "processes": processes,
    }
