"""What limits each CPU kernel: its time against the least that arithmetic, and that memory, would take.

python benchmarks/cpu_limits.py [--seconds 2]  (one thread; prints a Markdown table)

Arithmetic: the multiply-adds that the kernel's method needs, at the rate of torch's matrix product. Memory: every
tensor read or written once, at the rate of torch's copy within as many bytes. Both rates are measured in the
same run.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from cpu_layers import LAYERS

from convpool import planning, registry
from convpool.geometry import DEAD
from convpool.testing import candidates, machine, roofline, timing
from convpool.testing.cases import Case
from convpool.testing.parity import Layout, make_inputs

CPU = torch.device("cpu")
WINOGRAD_SHARE = 16 / 36  # of the products that the definition takes


def seconds_of(run: Callable[[], object], seconds: float) -> float:
    return timing.compare({"run": [run]}, CPU, seconds)["run"].median


def rows(case: Case, layout: Layout, dx: bool, seconds: float) -> Iterator[tuple[str, ...]]:
    """The table's rows of a layer: forward and backward."""
    g, inputs = case.geometry, candidates.in_layout(make_inputs(case), layout)
    x, weight, bias, dy = inputs.x, inputs.weight, inputs.bias, inputs.dy
    backend, plan = registry.running(planning.plan_for(x, weight, g.settings, "cpu").call)
    *_, computing, learning = backend.kernels(x, weight, g, plan, (dx, True, True))
    y, code = backend.forward(x, weight, bias, g, plan, True)

    moved = x.nbytes + y.nbytes + code.nbytes
    peaks = roofline.peaks(CPU, torch.float32, moved)
    needed = WINOGRAD_SHARE if computing == "forward_winograd" else 1
    products = needed * g.window * y.numel() * g.reduction
    winners = int((code != DEAD).sum()) * g.reduction * (1 + dx)
    for name, kernel, run, count, traffic in (
        ("forward", computing, lambda: backend.forward(x, weight, bias, g, plan, True), products, moved),
        (
            "backward",
            learning,
            lambda: backend.backward(dy, code, x, weight, g, plan, (dx, True, True)),
            winners,
            moved + dx * x.nbytes,
        ),
    ):
        took = seconds_of(run, seconds)
        arithmetic, memory = 2 * count / peaks.flops / took, traffic / peaks.bandwidth / took
        nearer = "arithmetic" if arithmetic >= memory else "memory"
        yield case.name, layout, name, kernel, f"{took * 1e3:.2f}", f"{arithmetic:.0%}", f"{memory:.0%}", nearer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring for each figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    print(f"{machine.setting(CPU)}\n")
    print("| layer | format | pass | kernel | ms | share of arithmetic's floor | of memory's | nearer limit |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    layouts: tuple[Layout, ...] = ("nchw", "channels_last")
    for case, dx, _ in LAYERS:
        for layout in layouts:
            for cells in rows(case, layout, dx, options.seconds):
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
