"""One training step of mnistfast's `cnn2` (batch 128, Adam) on a CPU: fused layers against torch's own forms.

python benchmarks/cpu_step.py [--seconds 10]
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from convpool import ConvReLUMaxPool2d
from convpool.testing import machine, timing
from mnistfast.measure.workloads import STEPS_IN_A_ROW
from mnistfast.models.zoo import FlattenChannelsLast

BATCH = 128


def network(fused: bool, pool_first: bool, channels_last: bool) -> nn.Module:
    """`cnn2` in one form. None copies to flatten: ours writes contiguously, the plain ones flatten as they lie."""

    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        if fused:
            return [ConvReLUMaxPool2d(inputs, outputs, 3, contiguous_output=outputs == 64)]
        after = [nn.MaxPool2d(2), nn.ReLU()] if pool_first else [nn.ReLU(), nn.MaxPool2d(2)]
        return [nn.Conv2d(inputs, outputs, 3), *after]

    torch.manual_seed(0)
    flatten = FlattenChannelsLast() if channels_last and not fused else nn.Flatten()
    head = [flatten, nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10)]
    net = nn.Sequential(*layer(1, 32), *layer(32, 64), *head)
    return net.to(memory_format=torch.channels_last) if channels_last else net


def step(net: nn.Module, fused_adam: bool) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(BATCH, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (BATCH,), generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), fused=fused_adam)

    def run() -> object:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring for each thread count")
    options = parser.parse_args()
    machine.keep_freed_memory()
    cpu, ours = torch.device("cpu"), {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(machine.setting(cpu))
        forms = {
            "eager": step(network(False, False, False), False),
            "eager, fused Adam": step(network(False, False, False), True),
            "channels_last, fused Adam": step(network(False, False, True), True),
            "pool first, channels_last, fused Adam": step(network(False, True, True), True),
            "convpool, fused Adam": step(network(True, False, False), True),
            "convpool, channels_last, fused Adam": step(network(True, False, True), True),
        }
        timings = timing.compare({name: [run] * STEPS_IN_A_ROW for name, run in forms.items()}, cpu, options.seconds)
        for name, value in timings.items():
            print(f"  {name:<40} {value}")
        best = min(t.median for name, t in timings.items() if not name.startswith("convpool"))
        ours[threads] = min(t.median for name, t in timings.items() if name.startswith("convpool"))
        eager = timings["eager"].median
        print(
            f"  convpool: {eager / ours[threads]:.2f} times eager, {best / ours[threads]:.2f} times the best plain form"
        )
    print(f"from one to two threads: {ours[1] / ours[2]:.2f}")


if __name__ == "__main__":
    main()
