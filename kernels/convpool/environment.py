"""What measured figures hold for: the device, the libraries that compute on it, and our own kernels."""

import ctypes
import hashlib
import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_HERE = Path(__file__).parent


def environment(device: torch.device) -> Mapping[str, str]:
    """By name, whatever makes the same call faster or slower on such a device, but for what the call itself tells.

    Only a CPU or a GPU has one; elsewhere it is empty, and nothing is measured.
    """
    if device.type == "cpu":
        return _cpu()
    return _cuda(device) if device.type == "cuda" else {}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def digest(files: Iterable[Path]) -> str:
    """A hash of the files' names and bytes."""
    found = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        found.update(f"{file.name} {len(content)} ".encode() + content)
    return found.hexdigest()[:16]


def _cpu() -> dict[str, str]:
    from convpool.cpu.library import library_path

    library = library_path()
    ours = [library] if isinstance(library, Path) else []
    onednn = re.search(r"(?:oneDNN|MKL-DNN) v([\d.]+)", torch.__config__.show())
    return {
        "device": device_name(torch.device("cpu")),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "library": ours[0].name if ours else "none",
        "torch": str(torch.__version__),
        "onednn": onednn[1] if onednn else "none",
        "kernels": digest([*ours, *_HERE.glob("cpu/*.py"), _HERE / "eager.py"]),
    }


def _cuda(device: torch.device) -> dict[str, str]:
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "device": device_name(device),
        "capability": f"{major}.{minor}",
        "driver": _driver(),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "torch": str(torch.__version__),
        "cudnn": str(torch.backends.cudnn.version()),
        "triton": _triton(),
        "kernels": digest([*_HERE.glob("gpu/*.py"), _HERE / "eager.py"]),
    }


def _driver() -> str:
    """The version of NVIDIA's driver, which NVML tells and torch does not."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1" if platform.system() != "Windows" else "nvml.dll")
    except OSError:
        return "unknown"
    found = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2():
        return "unknown"
    failed = nvml.nvmlSystemGetDriverVersion(found, len(found))
    nvml.nvmlShutdown()
    return "unknown" if failed else found.value.decode()


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"
