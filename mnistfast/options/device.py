"""The names of devices."""

from __future__ import annotations

DEVICES = "auto, cpu, cuda, cuda:1, mps"


def device_type(name: str) -> str:
    """Returns the kind of device that `name` asks for, there or not: `cuda` for `cuda:1`."""
    if name == "auto":
        import torch  # here, for most commands' options are read without it

        return "cuda" if torch.cuda.is_available() else "cpu"
    return name.partition(":")[0]
