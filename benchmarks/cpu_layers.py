"""Forward and backward of single layers on a CPU, against the best of torch's own forms.

python benchmarks/cpu_layers.py [layers | random | batchnorm] [--threads 1] [--seconds 1]
"""

import argparse
import math
import random

import torch

from convpool.testing import candidates, machine, normalised
from convpool.testing.cases import BATCH_NORM, Case
from convpool.testing.parity import make_inputs
from convpool.testing.timing import Race

# name, whether x needs a gradient, least ratio to the best plain form that the project promises
LAYERS = (
    (Case("A (128,1,28,28) -> 32 k3", 128, 1, (28, 28), 32, (3, 3)), False, 4.5),
    (Case("B (128,32,13,13) -> 64 k3", 128, 32, (13, 13), 64, (3, 3)), True, 3.5),
    (Case("C (128,1,28,28) -> 6 k5 p2", 128, 1, (28, 28), 6, (5, 5), {"padding": 2}), False, 4.0),
    (Case("D (128,6,14,14) -> 16 k5", 128, 6, (14, 14), 16, (5, 5)), True, 3.2),
    (Case("E (128,3,32,32) -> 32 k3", 128, 3, (32, 32), 32, (3, 3)), False, 3.5),
    (Case("F (2,64,112,112) -> 64 k3 p1", 2, 64, (112, 112), 64, (3, 3), {"padding": 1}), True, 2.0),
)
MOST_PRODUCTS = 4e9  # of a random layer's forward pass: eager takes about 0.1 s for it on one core


def random_layers(count: int = 30, seed: int = 0) -> list[Case]:
    """Layers drawn over what small networks use; those too large to time are drawn again."""
    draw = random.Random(seed)
    cases: list[Case] = []
    while len(cases) < count:
        kernel, stride = draw.choice((3, 5, 7)), draw.choice((1, 1, 2))
        batch, size = round(2 ** draw.uniform(0, 8)), round(10 * 11.2 ** draw.uniform(0, 1))
        inputs, outputs = round(2 ** draw.uniform(0, 7)), round(6 * (128 / 6) ** draw.uniform(0, 1))
        options = {"stride": stride, "padding": draw.choice((0, kernel // 2))}
        name = f"({batch},{inputs},{size},{size}) -> {outputs} k{kernel} s{stride} p{options['padding']}"
        case = Case(name, batch, inputs, (size, size), outputs, (kernel, kernel), options)
        geometry = case.geometry
        products = batch * outputs * geometry.conv_height * geometry.conv_width * geometry.reduction
        if products <= MOST_PRODUCTS:
            cases.append(case)
    return cases


def row(case: Case, dx: bool, seconds: float, backend: str) -> tuple[float, float]:
    """Print one layer's figures; the ratios to the best plain form for NCHW and channels_last input."""
    inputs = make_inputs(case)
    infer = candidates.compare_layer(inputs, [backend], dx=dx, backward=False, seconds=seconds / 2)
    train = candidates.compare_layer(inputs, [backend], dx=dx, seconds=seconds)
    forward, both = candidates.best_plain(infer), candidates.best_plain(train)
    ours = [train[f"{backend}, {layout}"].median for layout in ("nchw", "channels_last")]
    ratios = [train[both].median / t for t in ours]
    forward_ratios = [
        infer[forward].median / infer[f"{backend}, {layout}"].median for layout in ("nchw", "channels_last")
    ]
    spread = max((t.high - t.low) / t.median for t in train.values())
    print(
        f"{case.name:<44} {train[both].median * 1e3:8.3f} {ours[0] * 1e3:8.3f} {ours[1] * 1e3:8.3f} "
        f"{ratios[0]:6.2f} {ratios[1]:6.2f}   {train['eager'].median / min(ours):6.1f}   "
        f"{forward_ratios[0]:6.2f} {forward_ratios[1]:6.2f}   {spread:4.0%}  {both}",
        flush=True,
    )
    return ratios[0], ratios[1]


def norm_row(case: Case, seconds: float, backend: str, compile: bool) -> None:
    """Print the figures of one layer with a norm in training mode before its ReLU."""
    inputs, ours = normalised.make_norm_inputs(case), normalised.NormThrough(backend)
    forms = {"ours, nchw": (ours, "nchw"), "ours, channels_last": (ours, "channels_last"), **normalised.PLAIN}
    race = Race(
        {name: normalised.norm_calls(inputs, *form, dx=case.in_channels > 3) for name, form in forms.items()},
        inputs.x.device,
    )
    if compile:
        layer, layout = forms[min(normalised.PLAIN, key=race.foretold)]
        race.add("compiled", normalised.norm_calls(inputs, candidates.compiled(layer), layout, dx=case.in_channels > 3))
    found = race.run(seconds)
    best = candidates.best_plain(found, normalised.PLAIN)
    times = [t.median for t in (found[best], found["ours, nchw"], found["ours, channels_last"])]
    compiled = f"   torch.compile {found['compiled'].median * 1e3:.3f} ms" if compile else ""
    spread = max((t.high - t.low) / t.median for t in found.values())
    print(
        f"{case.name:<44} {times[0] * 1e3:8.3f} {times[1] * 1e3:8.3f} {times[2] * 1e3:8.3f} "
        f"{times[0] / times[1]:6.2f} {times[0] / times[2]:6.2f}   {found['eager'].median / min(times[1:]):6.1f}   "
        f"{spread:4.0%}  {best}{compiled}   by {normalised.explained(inputs, backend)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("layers", "random", "batchnorm"), default="layers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring for each layer")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--compile", action="store_true", help="with batchnorm: torch.compile of the best plain form")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine.keep_freed_memory()
    print(machine.setting(torch.device("cpu")))
    forward = "" if options.what == "batchnorm" else "   forward alone"
    print("ms of forward and backward; ratios to the best plain form for NCHW and for channels_last input")
    print(f"{'layer':<44} {'plain':>8} {'nchw':>8} {'last':>8} {'ratio':>6} {'ratio':>6}   {'eager':>6}{forward}")
    if options.what == "layers":
        for case, dx, least in LAYERS:
            if options.only in case.name:
                worst = min(row(case, dx, options.seconds, options.backend))
                print(f"    {'holds' if worst >= least else 'FALLS SHORT'}: at least {least}")
        return
    if options.what == "batchnorm":
        for case in BATCH_NORM:
            if options.only in case.name:
                norm_row(case.at_full_size(), options.seconds, options.backend, options.compile)
        return
    ratios = [
        row(case, True, options.seconds, options.backend) for case in random_layers() if options.only in case.name
    ]
    for name, values in zip(("NCHW", "channels_last"), zip(*ratios, strict=True), strict=True):
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"{name}: geometric mean {mean:.2f}, least {min(values):.2f} over {len(values)} layers")


if __name__ == "__main__":
    main()
