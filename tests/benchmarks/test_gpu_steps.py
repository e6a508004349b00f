"""The Python that only a GPU would run: the real launchers and steps, every launch compiled for one and none made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_steps.candidates import PAIRS, changes, pairs, singles
from convpool.gpu.config import Launch

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]
SHIPPED = Launch(64, 32, 32, 4, 2, ranges=66, registers=255, channels=0)


@pytest.mark.parametrize("kernel", ["forward_patch", "forward_dot", "weight_grad", "sum_partials", "input_grad"])
def test_candidates_are_different_and_begin_with_the_shipped_launch(kernel):
    found = singles(kernel, SHIPPED, 64)
    assert found[0] == SHIPPED
    assert all(len(changes(kernel, SHIPPED, launch)) == 1 for launch in found[1:])
    more = pairs(kernel, SHIPPED, 64)
    assert len({*found, *more}) == len(found) + len(more)
    assert bool(more) == (kernel in PAIRS)


def test_a_program_of_a_channels_last_output_has_its_channels_as_columns():
    side_by_side, one_by_one = Launch(16, 32, channels=32), Launch(128, 1, channels=6)
    for launch in singles("forward_direct", side_by_side, 32) + pairs("forward_direct", side_by_side, 32):
        assert launch.columns == launch.channels
    for launch in singles("forward_direct", one_by_one, 6):
        assert launch.columns == 1
        assert launch.channels <= 12


# Tensors lie on the CPU, where a launch is compiled and then left: what kernels should have written is not there, so
# the comparisons are taken out.
COMPILED_NOT_RUN = """
import torch
from triton.compiler.compiler import CompiledKernel
from benchmarks.gpu_steps import host_cost, kernels, layers, parity, sweep
from benchmarks.gpu_steps.subjects import Bench, Layer
from convpool.gpu.backend import TritonBackend
from convpool.gpu.offline import TARGETS, compiled_launches

class Pretended(Bench):
    rehearses = False

    def race(self, calls, **_):
        for call in calls.values():
            call()
        return {name: {"us": 1.0, "low": 1.0, "high": 1.0, "n": 5} for name in calls}

TritonBackend.unavailable = lambda _: None  # it has no GPU here, and needs none to be compiled
CompiledKernel.n_regs = CompiledKernel.n_spills = 0  # known once a kernel is loaded
sweep._equal, layers._difference = lambda got, want: True, lambda got, want: 0.0
bench, layer = Pretended("cpu"), Layer("lenet-2", 4, "tf32", "channels_last")
sweep.swept = lambda _: [layer]
with compiled_launches(TARGETS["sm_90"]):
    found = [find() for _, find in [*sweep.rows(bench)][::20]]
    assert all(row["ratio"] == 1 and row["grid"] for row in found), found
    names = [kernel["kernel"] for kernel in kernels._ours(bench, layer)["kernels"]]
    assert names == ["forward_dot", "weight_grad", "sum_partials", "input_grad", "pool", "expand"], names
    parts = {key["part"]: find() for key, find in host_cost.rows(bench) if key["part"].startswith("launch")}
    assert len(parts) == 2, parts
    row = layers._measure(bench, layer)
    assert all(row[form]["train"] for form in ("fused", "split", "eager", "pool_first")), row
    for step in (layers, parity, sweep):
        next(iter(step.ahead()))()
"""


@pytest.mark.slow
def test_steps_launch_what_they_mean_to():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    process = subprocess.run(
        [sys.executable, "-c", COMPILED_NOT_RUN], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
