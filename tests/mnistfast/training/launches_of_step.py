"""Prints what a step of a preset's training launches on a GPU that is not here, as JSON.

    {preset: {"launches": [name, ...], "operators": count, "numbers": [step, step], "compiled_late": count}}

Run by test_launches.py in a process that does not interpret. Tensors lie on the CPU, where torch's operators run; what
Triton would launch ends in a driver that only listens, so that values are whatever was in memory. "operators" counts
the passes of fused layers, whose launches are listed; "numbers" has, for each of two steps that follow each other, all
that launches are given but addresses.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import torch
import triton
from launch_cost import launches_by_triton, stand_in_driver
from torch import Tensor

from convpool import use_backend
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.ops.placement import standing_for_gpus
from mnistfast.options.learning import TrainConfig
from mnistfast.training.recipe import built
from mnistfast.training.trainer import Trainer
from tests.mnistfast.training.recording import record

STEPS = 8


class Listening:
    """Stands for Triton's launchers: notes the numbers that a kernel is handed."""

    heard: list[list[Any]]

    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, x: int, y: int, z: int, stream: int, kernel: int, *rest: Any) -> None:
        numbers = [a for a in rest[3:] if not isinstance(a, Tensor) and not (isinstance(a, int) and a > 1 << 32)]
        Listening.heard.append([x, y, z, stream, kernel, *map(str, numbers)])


def heard_during(act: Callable[[], object]) -> list[list[Any]]:
    Listening.heard = []
    act()
    return Listening.heard.copy()


def trainer_of(preset: str) -> Trainer:
    config = replace(TrainConfig(model=preset, device="cuda"), max_steps=None, epochs=1)
    model = built(config, 10, torch.device("cpu")).to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (STEPS * config.batch_size, *model.input_size), dtype=torch.uint8)
    split = Split(images.numpy(), (torch.arange(len(images)) % 10).numpy())
    data = DeviceData(split, torch.device("cpu"), *((value,) * model.input_size[0] for value in (0.13, 0.31)))
    return Trainer(model, data, None, config)


def launched(preset: str) -> dict[str, Any]:
    trainer = trainer_of(preset)
    trainer.prepare()

    def step() -> None:
        trainer.launcher.take(trainer.config.batch_size)

    for _ in range(2):
        step()
    compiled: list[str] = []
    compile_anew = triton.compiler.compile
    triton.compiler.compile = lambda source, **options: compiled.append(str(source)) or compile_anew(source, **options)
    numbers = [heard_during(step) for _ in range(2)]
    triton.compiler.compile = compile_anew
    with launches_by_triton() as names:
        torchs = record(step).launches
    own = [name for name in torchs if not name.startswith("convpool.")]
    operators = len(torchs) - len(own)
    return {"launches": names + own, "operators": operators, "numbers": numbers, "compiled_late": len(compiled)}


def main(presets: list[str]) -> None:
    with stand_in_driver() as driver, use_backend("triton"), standing_for_gpus("cpu"):
        driver.launcher_cls = Listening  # type: ignore[method-assign,assignment]
        numbers = count(1)  # of the kernels, in the order in which they are loaded
        driver.utils.load_binary = lambda name, kernel, shared, device: (object(), next(numbers), 32, 0, 1024)
        Listening.heard = []
        print(json.dumps({preset: launched(preset) for preset in presets}))


if __name__ == "__main__":
    main(sys.argv[1:])
