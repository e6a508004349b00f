"""A few launches of the fused plan in a process of its own, for a profiler or a sanitizer to look at.

python -m benchmarks.gpu_steps.examined DEVICE
"""

import sys
from itertools import product

from benchmarks.gpu_steps.subjects import BATCHES, Bench, Layer, Numbers, precise, usual_layout

EXAMINED: tuple[tuple[str, Numbers], ...] = (
    *(("cnn-2", "tf32"), ("cnn-1", "tf32"), ("fast-2", "tf32"), ("fast-1", "tf32")),
    *(("cnn-2", "bf16"), ("cnn-1", "bf16")),
)


def main(device: str) -> None:
    """Each layer's forward and backward pass, once."""
    bench = Bench(device)
    if bench.rehearses:
        print("nothing is launched in a rehearsal")
        return
    from benchmarks.gpu_steps.launches import launch_fused, launch_split

    for batch, (name, numbers) in product(BATCHES, EXAMINED):
        precise(numbers)
        layer = Layer(name, batch, numbers, usual_layout(name))
        inputs = layer.inputs(device)
        launch_fused(inputs, (layer.dx, True, True))
        launch_split(inputs)
    import torch

    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
