"""How many Triton kernels a training compiles: each costs a second or more before its step can run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnistfast.options.presets import PRESETS

pytest.importorskip("triton")
pytestmark = [pytest.mark.slow, pytest.mark.triton]
ROOT = Path(__file__).parents[3]
# For each layer a forward pass with winners and one without, and its gradients; one sum for few columns, one for many.
# Behind a set's full batches a last, smaller one is scored, for which a layer may take smaller blocks: its pass without
# winners then counts twice. dx is asked for behind the first layer only. The first filters of speedrun are not trained;
# the last layers of accurate take the split plan. Those of cnn2-bn are torch's in training.
MOST = {"cnn1": 4, "cnn2": 10, "cnn2-bn": 3, "lenet5": 9, "cifar-cnn": 10, "fast": 9, "accurate": 12, "speedrun": 6}


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[str]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{ROOT / 'kernels'}{os.pathsep}{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    script = Path(__file__).with_name("kernels_of_training.py")
    command = [sys.executable, str(script), *MOST]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_kernel_a_layer_and_gradient_whatever_the_batch(preset, compiled) -> None:
    assert 0 < len(compiled[preset]) <= MOST[preset], compiled[preset]
