"""`explain` is the truth: it names the kernels that then run, as the libraries tell, for every case of the table."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from convpool import conv_bn_relu_max_pool2d, explain, use_backend
from convpool.cpu import native
from convpool.cpu.kernels import Kernel
from convpool.testing import cases, parity
from convpool.testing.candidates import Through

missing = native.BACKEND.unavailable()
needs_library = pytest.mark.skipif(missing is not None, reason=f"cpu: {missing}")


@pytest.fixture
def told() -> Iterator[list[str]]:
    """The kernels that the library says it ran."""
    library, ran = native.library(), list[str]()

    def note(kernel: int, function: object, arguments: object) -> int:
        ran.append(library.convpool_kernel_name(kernel).decode())
        return kernel

    names = "forward", "pool", "backward", "patch_moments"
    functions = [getattr(library, f"convpool_{name}") for name in names]
    for function in functions:
        function.errcheck = note
    yield ran
    for function in functions:
        del function.errcheck


@needs_library
def test_the_library_has_the_kernels_of_the_enum() -> None:
    found = [native.library().convpool_kernel_name(kernel) for kernel in range(len(Kernel) + 1)]
    assert found == [*(kernel.name.lower().encode() for kernel in Kernel), None]


@needs_library
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_cpu(layout: parity.Layout, threads: int, told: list[str]) -> None:
    before, seen = torch.get_num_threads(), set[str]()
    torch.set_num_threads(threads)
    try:
        for case in (*cases.CASES, *(replace(case, batch=16) for case in cases.SMALL_NETWORKS)):
            for first_layer in (True, False):
                inputs = parity.make_inputs(case, layout=layout)
                leaves = [t.requires_grad_() for t in inputs.tensors]
                inputs.x.requires_grad_(not first_layer)
                with use_backend("cpu"):
                    plan = explain(inputs.x, inputs.weight, inputs.bias, **case.options)
                    y = Through("cpu")(inputs.x, inputs.weight, inputs.bias, inputs.settings)
                torch.autograd.grad(y, leaves[first_layer:], inputs.dy)
                said = tuple(kernel for kernel in plan.kernels if kernel != "torch's convolution")
                assert (case, said) == (case, tuple(told))
                seen |= set(told)
                told.clear()
    finally:
        torch.set_num_threads(before)
    assert seen == {kernel.name.lower() for kernel in Kernel if kernel is not Kernel.PATCH_MOMENTS}


@needs_library
@pytest.mark.parametrize("name", ["cnn-1", "cnn-2", "resnet-stem"])
def test_cpu_under_batch_statistics(name: str, told: list[str]) -> None:
    case = replace(cases.by_name(name), bias=False)
    inputs = parity.make_inputs(case)
    weight = inputs.weight.requires_grad_()
    with use_backend("cpu"):
        plan = explain(inputs.x, weight, batch_statistics=True, **case.options)
        conv_bn_relu_max_pool2d(inputs.x, weight, training=True, **case.options).sum().backward()
    assert plan.kernels[0] == "patch_moments"
    assert [kernel for kernel in plan.kernels if kernel != "torch's convolution"] == told


@needs_library
def test_inference_runs_no_backward(told: list[str]) -> None:
    inputs = parity.make_inputs(cases.by_name("cnn-2"))
    with use_backend("cpu"):
        assert explain(inputs.x, inputs.weight, inputs.bias).kernels == ("forward_winograd",)


LAUNCHES = """
import json, sys, torch
from triton.runtime.jit import JITFunction
from convpool.gpu import launch
from convpool.gpu.backend import BACKEND
from convpool.gpu.offline import TARGETS, compiled_launches
from convpool.testing import cases, parity

ran = []
needs_of = lambda bias: [(dx, dw, dw and bias) for dx in (True, False) for dw in (True, False)]
with compiled_launches(TARGETS["sm_90"]):
    JITFunction.run = lambda self, *_, **__: ran.append(self.__name__)
    for case in cases.CASES:
        i = parity.make_inputs(case, device="meta")
        for plan in ("fused", "split"):
            for needs in needs_of(case.bias):
                y, code = launch.forward(i.x, i.weight, i.bias, i.geometry, plan, True)
                if any(needs):
                    launch.backward(y, code, i.x, i.weight, i.geometry, plan, needs)
                said = BACKEND.kernels(i.x, i.weight, i.geometry, plan, needs)
                assert [name for name in said if "vendor" not in name] == ran, (case.name, plan, needs, said, ran)
                ran.clear()
print("all told")
"""


@pytest.mark.slow
def test_triton() -> None:
    """The launches themselves, seen where Triton would compile them for a GPU that is not here."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", LAUNCHES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "all told\n", done.stderr[-3000:]
