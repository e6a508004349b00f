"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, over the table of shapes in two memory formats."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convpool.cpu import library, native
from convpool.cpu.kernels import backward_kernel, forward_kernel
from convpool.layout import new_code, new_gradients, new_output
from convpool.testing import cases
from convpool.testing.parity import Layout, make_inputs

SOURCES = Path(native.__file__).parent / "src"
FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mpopcnt", "-mbmi", "-mbmi2"],
    "AVX2": ["-mavx2", "-mfma", "-mpopcnt", "-mbmi", "-mbmi2"],
}


def problem(case: cases.Case, layout: Layout, lanes: int) -> str:
    """The integers of the struct a backend passes for a call, and the kernel for a first layer's gradients."""
    inputs = make_inputs(case, layout=layout)
    geometry = case.geometry
    y = new_output(inputs.x, inputs.weight, geometry)
    code = new_code(y, True)
    dx, dw, _ = new_gradients(code, inputs.weight, geometry, (True, True, True))
    tensors = {"x": inputs.x, "w": inputs.weight, "y": y, "dx": dx, "dw": dw}
    choice = forward_kernel(geometry, inputs.x.stride(), y.stride(), 1, lanes)
    filled = library.problem_of(geometry, choice, **{name: tensor.stride() for name, tensor in tensors.items()})
    first_layer = backward_kernel(geometry, (False, True, True))
    return " ".join(map(str, [*memoryview(filled).cast("B").cast("q"), int(first_layer)]))


@pytest.mark.slow
@pytest.mark.parametrize("capability", FLAGS)
def test_no_access_outside_and_no_undefined_behaviour(capability: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler")
    found = torch.backends.cpu.get_cpu_capability()
    if found != "AVX512" and found != capability:
        pytest.skip(f"the processor has {found}")
    driver = tmp_path / "driver"
    flags = ["-std=c++17", "-O1", "-g", "-fopenmp", "-fno-sanitize-recover=all", "-fsanitize=address,undefined"]
    source = Path(__file__).with_name("sanitize.cpp")
    subprocess.run([compiler, *flags, *FLAGS[capability], f"-I{SOURCES}", source, "-o", driver], check=True)
    drawn = [case for case in cases.CASES if case.batch]
    lanes = 16 if capability == "AVX512" else 8
    lines = [problem(case, layout, lanes) for case in drawn for layout in ("nchw", "channels_last")]
    result = subprocess.run([driver], input="\n".join(lines), capture_output=True, text=True, timeout=500)
    print(result.stderr[-6000:], file=sys.stderr)
    assert result.returncode == 0
    assert result.stdout == f"{len(lines)} problems\n"
