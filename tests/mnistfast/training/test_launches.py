"""How much a GPU is launched in a step, with nothing that changes from step to step but what lies in memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = [pytest.mark.slow, pytest.mark.triton]
ROOT = Path(__file__).parents[3]
# Triton's: the batch, a pass for each fused layer, the loss, for each layer that learns the weight's gradient and its
# sum, one for dx behind the first layer, Muon's step. torch's: each matrix product, activation and sum of a bias, and
# two of the optimiser.
MOST = {"cnn2": 21, "speedrun": 13}
LEARNING = {"cnn2": 2, "speedrun": 1}  # of two fused layers each


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> dict[str, dict]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    folders = [str(ROOT / "kernels"), str(ROOT / "benchmarks"), str(ROOT), environment.get("PYTHONPATH", "")]
    cache = str(tmp_path_factory.mktemp("triton"))
    environment |= {"PYTHONPATH": os.pathsep.join(folders), "TRITON_CACHE_DIR": cache, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).with_name("launches_of_step.py")), *MOST]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("preset", MOST)
def test_few_launches(preset, launched) -> None:
    names = launched[preset]["launches"]
    assert 0 < len(names) <= MOST[preset], names
    assert names.count("begin_step") == names.count("judge") == 1


@pytest.mark.parametrize("preset", MOST)
def test_every_fused_layer_runs_its_kernels(preset, launched) -> None:
    names, learning = launched[preset]["launches"], LEARNING[preset]
    assert sum(name.startswith("forward_") for name in names) == 2
    assert names.count("weight_grad") == names.count("sum_partials") == learning
    assert names.count("input_grad") == learning - 1  # nothing learns before the first
    assert launched[preset]["operators"] == 2 + learning


@pytest.mark.parametrize("preset", MOST)
def test_a_step_is_launched_as_the_one_before(preset, launched) -> None:
    """Numbers are frozen in a graph: none may hang on the step. And nothing is compiled once it is warm."""
    first, second = launched[preset]["numbers"]
    assert first == second
    assert launched[preset]["compiled_late"] == 0
