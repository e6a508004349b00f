"""A few launches of either plan in a process of its own, for a profiler or a sanitizer to look at.

python -m benchmarks.gpu_steps.examined DEVICE BATCH NUMBERS
"""

import sys

from benchmarks.gpu_steps.subjects import Bench, Layer, Numbers, precise, usual_layout

EXAMINED = ("cnn-2", "cnn-1", "fast-2", "fast-1")


def command(bench: Bench, batch: int, numbers: Numbers) -> list[str]:
    """What to run, under whatever tool."""
    return [sys.executable, "-m", "benchmarks.gpu_steps.examined", bench.device, str(batch), numbers]


def main(device: str, batch: str, numbers: Numbers) -> None:
    """Each layer's forward and backward pass, once."""
    if Bench(device).rehearses:
        print("nothing is launched in a rehearsal")
        return
    import torch

    from benchmarks.gpu_steps.launches import launch_fused, launch_split

    precise(numbers)
    for name in EXAMINED:
        layer = Layer(name, int(batch), numbers, usual_layout(name))
        inputs = layer.inputs(device)
        launch_fused(inputs, (layer.dx, True, True))
        launch_split(inputs)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
