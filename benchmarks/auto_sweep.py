"""Is `auto` ever slower than torch: random layers in inference and training, against the best eager form.

    python -m benchmarks.auto_sweep --layers 200 --seed 0 --out sweep.jsonl             # by the rule alone
    python -m benchmarks.auto_sweep --layers 200 --seed 0 --out tuned.jsonl --tune 1    # after tuning, a second a row

The eager forms are those that somebody would write for tensors in the layer's own memory format: ReLU before the pool,
and after it. A row that falls below the limit is measured again, and fails where three fresh measurements do: one alone
is often the machine's. What plain and the same plain come to beside each other is the noise. Rows that stand in the
file are not measured again: stop it and go on. The exit status is 1 if a row failed.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convpool import choices, conv_relu_max_pool2d, tune
from convpool.module import ConvReLUMaxPool2d
from convpool.testing import candidates, machine
from convpool.testing.cases import Case
from convpool.testing.parity import Inputs, Layout, check_layer, make_inputs
from convpool.testing.timing import Race

LIMIT, TUNED_LIMIT = 0.95, 0.97  # of the best eager form's time over ours
MOST_ADDED = 15e-6  # seconds a call, where the best eager form takes less than `SMALL`
SMALL = 100e-6
LONGEST = 50e-3  # torch's forward pass
MOST_PRODUCTS, MOST_ELEMENTS = 4e9, 3e7  # more surely takes longer
TRIES = 3
_POOLS: tuple[dict[str, Any], ...] = (
    *({}, {}, {}, {"ceil_mode": True}, {"pool_kernel_size": 3}, {"pool_kernel_size": (2, 1)}),
    *({"pool_kernel_size": 3, "pool_stride": 2}, {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1}),
)


@dataclass(frozen=True)
class Layer:
    """One layer as it is used. `dx`: whether x has a gradient in training."""

    case: Case
    layout: Layout
    dx: bool


@dataclass(frozen=True)
class Row:
    """What one layer came to, in one use of it.

    Attributes:
        ratios: the best eager form's time over that of `auto`, one for each fresh measurement.
        added: seconds that `auto` takes more, of the same measurements.
        noise: the best eager form's time over its own, of the first measurement.
        eager: seconds of the best eager form, of the first measurement.
        plan: who computed, by `auto`.
    """

    key: str
    training: bool
    threads: int
    eager: float
    ratios: tuple[float, ...]
    added: tuple[float, ...]
    noise: float
    plan: str

    @property
    def small(self) -> bool:
        return self.eager < SMALL

    def failed(self, limit: float) -> bool:
        """Whether every measurement fell below the limit, and there were enough of them."""
        return len(self.ratios) >= TRIES and all(
            map(lambda r, a: below(self.small, r, a, limit), self.ratios, self.added)
        )


def below(small: bool, ratio: float, added: float, limit: float) -> bool:
    """Whether a measurement is worse than what is allowed for a layer of this size."""
    return added > MOST_ADDED if small else ratio < limit


def layers(count: int, seed: int) -> Iterator[Layer]:
    """Layers over all that networks have: large maps, deep layers on small ones, batches off the powers of two."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        kernel = rng.choice((1, 2, 3, 3, 3, 4, 5, 6, 7))
        channels = rng.choice((1, 3, _spread(rng, 1, 512), _spread(rng, 16, 512)))
        # A kernel of 1 with a stride ends the process in torch's own weight gradient (see eager.py).
        options = {
            "stride": 1 if kernel == 1 else rng.choice((1, 1, 2)),
            "padding": rng.choice((0, kernel // 2)),
            **rng.choice(_POOLS),
        }
        case = Case(
            "",
            _spread(rng, 1, 256),
            channels,
            (_spread(rng, 2, 224),) * 2,
            _spread(rng, 1, 512),
            (kernel,) * 2,
            options,
        )
        layout: Layout = rng.choice(("nchw", "channels_last"))
        dx = channels > 3 and rng.random() < 0.8
        if _fits(case):
            made += 1
            yield Layer(case, layout, dx)


def _spread(rng: random.Random, least: int, most: int) -> int:
    """Evenly by the logarithm; half of them powers of two."""
    drawn = math.exp(rng.uniform(math.log(least), math.log(most)))
    return 2 ** round(math.log2(drawn)) if rng.random() < 0.5 else round(drawn)


def _fits(case: Case) -> bool:
    try:
        g = case.geometry
    except ValueError:
        return False
    outputs = g.batch * g.out_channels * g.conv_height * g.conv_width
    elements = outputs + g.batch * g.in_channels * g.height * g.width
    return outputs * g.reduction <= MOST_PRODUCTS and elements <= MOST_ELEMENTS


def forms(case: Case) -> dict[str, Callable[..., Tensor]]:
    """`auto` as a module calls it, and what somebody would write with torch's own functions."""
    s, options = case.settings, candidates.op_options(case.settings)
    conv = s.stride, (s.padding[0], s.padding[2]), s.dilation, s.groups
    pool = s.pool_kernel, s.pool_stride, s.pool_padding, s.pool_dilation, s.ceil_mode

    def relu_first(x: Tensor, weight: Tensor, bias: Tensor | None, _: object) -> Tensor:
        return F.max_pool2d(F.relu(F.conv2d(x, weight, bias, *conv)), *pool)

    def pool_first(x: Tensor, weight: Tensor, bias: Tensor | None, _: object) -> Tensor:
        return F.relu(F.max_pool2d(F.conv2d(x, weight, bias, *conv), *pool))

    def auto(x: Tensor, weight: Tensor, bias: Tensor | None, _: object) -> Tensor:
        return conv_relu_max_pool2d(x, weight, bias, **options)

    return {"auto": auto, "relu first": relu_first, "pool first": pool_first}


def measured(layer: Layer, training: bool, threads: int, seconds: float, limit: float, tuning: float) -> Row | None:
    """The row of a layer; None where torch's forward pass takes longer than `LONGEST`.

    Raises:
        ParityError: `auto` computes something else than torch.
    """
    inputs = candidates.in_layout(make_inputs(layer.case), layer.layout)
    dx = layer.dx and training
    called = forms(layer.case)
    with choices.use(_tuned(inputs, training, dx, tuning)) if tuning else nullcontext():
        for integers in (True, False):
            parity = check_layer(inputs, called["auto"], integers=integers, dx=dx, backward=training)
            if not parity.ok:
                raise candidates.ParityError(f"{layer}: {parity}")
        ratios, added, first = [], [], None
        while len(ratios) < TRIES:
            eager, ratio, more, noise = _race(inputs, called, dx, training, seconds)
            if first is None:
                first = eager, noise
                if not training and eager > LONGEST:
                    return None
            ratios.append(ratio)
            added.append(more)
            if not below(first[0] < SMALL, ratio, more, limit):
                break
        plan = candidates.explained(_wanting(inputs, training, dx), "auto").call
    return Row(_key(layer, training, threads), training, threads, first[0], tuple(ratios), tuple(added), first[1], plan)


def _race(
    inputs: Inputs, called: dict[str, Callable[..., Tensor]], dx: bool, training: bool, seconds: float
) -> tuple[float, float, float, float]:
    """Seconds of the best eager form, its ratio to `auto`, what `auto` takes more, and the ratio of eager to itself."""
    calls = {
        name: candidates.timed_calls(inputs, form, dx=dx, backward=training)
        for name, form in (called | {"again": called["pool first"]}).items()
    }
    timings = {name: timing.median for name, timing in Race(calls, torch.device("cpu")).run(seconds).items()}
    best = min(timings["relu first"], timings["pool first"])
    return best, best / timings["auto"], timings["auto"] - best, timings["pool first"] / timings["again"]


def _wanting(inputs: Inputs, training: bool, dx: bool) -> Inputs:
    """The inputs with the gradients that the layer is asked for."""
    x, weight = (t.detach().requires_grad_(wanted) for t, wanted in ((inputs.x, dx), (inputs.weight, training)))
    return Inputs(x, weight, inputs.bias, inputs.dy, inputs.settings)


def _tuned(inputs: Inputs, training: bool, dx: bool, seconds: float) -> choices.Choices:
    g = inputs.geometry
    layer = ConvReLUMaxPool2d(g.in_channels, g.out_channels, g.kernel, **candidates.op_options(inputs.settings))
    layer = layer.train(training)
    if inputs.x.is_contiguous(memory_format=torch.channels_last):
        layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return tune(layer, inputs.x.detach().requires_grad_(dx), seconds=seconds, store=False).choices


def _key(layer: Layer, training: bool, threads: int) -> str:
    c, g = layer.case, layer.case.geometry
    pool = {name: value for name, value in c.options.items() if name not in ("stride", "padding")}
    use = f"training{' with dx' if layer.dx else ''}" if training else "inference"
    return (
        f"{g.batch}x{g.in_channels}x{g.height}x{g.width} -> {g.out_channels} k{g.kernel[0]} s{c.options['stride']} "
        f"p{c.options['padding']} {pool or ''} {layer.layout}, {use}, {threads} threads"
    )


def summary(rows: Iterable[Row], limit: float) -> tuple[list[str], bool]:
    """What the rows come to, in lines; and whether one failed."""
    rows = list(rows)
    lines = []
    for training in (False, True):
        for threads in sorted({row.threads for row in rows}):
            some = [r for r in rows if (r.training, r.threads, r.small) == (training, threads, False)]
            if some:
                use, noises = "training" if training else "inference", [r.noise for r in some]
                mean, lowest = _mean(r.ratios[-1] for r in some), min(max(r.ratios) for r in some)
                lines.append(
                    f"{use}, {threads} threads: {len(some)} rows, ratio {mean:.2f} (geometric mean), lowest "
                    f"{lowest:.3f}; plain against itself {min(noises):.3f} to {max(noises):.3f}"
                )
    small = [r for r in rows if r.small]
    if small:
        most = max(min(r.added) for r in small) * 1e6
        lines.append(f"below {SMALL * 1e6:.0f} us: {len(small)} rows, at most {most:.1f} us added")
    failed = [row for row in rows if row.failed(limit)]
    for row in failed:
        figures = ", ".join(f"{r:.3f} ({a * 1e6:+.0f} us)" for r, a in zip(row.ratios, row.added, strict=True))
        lines.append(f"FAILED {row.key}: {row.plan}, {figures}; eager {row.eager * 1e3:.3f} ms, noise {row.noise:.3f}")
    lines.append(f"{len(failed)} of {len(rows)} rows failed (limit {limit})")
    return lines, bool(failed)


def _mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def _read(path: Path) -> dict[str, Row | None]:
    if not path.exists():
        return {}
    found: dict[str, Row | None] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        found[entry["key"]] = (
            None
            if entry.get("long")
            else Row(**{**entry, "ratios": tuple(entry["ratios"]), "added": tuple(entry["added"])})
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--tune", type=float, default=0.0, help="tune each row first, for this many seconds")
    parser.add_argument(
        "--out", type=Path, required=True, help="a line of JSON for each row; rows that stand there stay"
    )
    options = parser.parse_args()
    machine.keep_freed_memory()
    limit = TUNED_LIMIT if options.tune else LIMIT
    rows = _read(options.out)
    with choices.use(None), options.out.open("a") as file:
        for layer in layers(options.layers, options.seed):
            for threads in options.threads:
                torch.set_num_threads(threads)
                for training in (False, True):
                    key = _key(layer, training, threads)
                    if key in rows or (training and rows.get(_key(layer, False, threads), layer) is None):
                        continue
                    rows[key] = measured(layer, training, threads, options.seconds, limit, options.tune)
                    row = rows[key]
                    file.write(json.dumps({"key": key, "long": True} if row is None else asdict(row)) + "\n")
                    file.flush()
    print(machine.setting(torch.device("cpu")))
    lines, failed = summary(filter(None, rows.values()), limit)
    print("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
