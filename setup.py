"""Everything static is in pyproject.toml; here are convpool's native libraries, one for each instruction set."""

import platform
from glob import glob

from setuptools import Extension, setup

SOURCES = "kernels/convpool/cpu/src"
# Compiled with OpenMP but linked without it: the calls then bind to the libgomp that torch has loaded, one pool of
# threads instead of two that fight for the cores. No debug information: it made the libraries ten times larger.
FLAGS = ["-std=c++17", "-O3", "-g0", "-fopenmp", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"]
FLAGS += ["-Wall", "-Wextra", "-Wno-maybe-uninitialized"]  # GCC 12 sees that in its own AVX-512 header
INSTRUCTION_SETS = {
    "avx512": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mfma",
        "-mpopcnt",
        "-mbmi",
        "-mbmi2",
        "-mprefer-vector-width=512",
    ],
    "avx2": ["-mavx2", "-mfma", "-mpopcnt", "-mbmi", "-mbmi2"],
}


def library(instruction_set: str, flags: list[str]) -> Extension:
    """Not a Python module: a plain C interface, loaded by convpool/cpu/library.py; left out without a compiler."""
    return Extension(
        f"convpool.cpu._{instruction_set}",
        sources=[f"{SOURCES}/{instruction_set}.cpp"],
        depends=glob(f"{SOURCES}/*.h"),
        extra_compile_args=FLAGS + flags,
        language="c++",
        optional=True,
    )


if platform.machine() in ("x86_64", "AMD64"):
    libraries = [library(name, flags) for name, flags in INSTRUCTION_SETS.items()]
else:
    libraries = []  # narrower vectors than AVX2's do not beat torch's own layers

setup(ext_modules=libraries, exclude_package_data={"convpool.cpu": ["src/*"]})
