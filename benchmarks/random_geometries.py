"""Random calls of `conv_relu_max_pool2d`, held to torch's own layers in float64: value and gradients.

    python benchmarks/random_geometries.py --backend auto --count 20000 --seed 0
    python benchmarks/random_geometries.py --backend auto --seed 0 --only 17      # one of them again

Every stratum gets the same share of the calls. Small integers must come out equal to the last bit, normal numbers
within the bound on rounding of `testing.parity`. Tensors lie in memory in many ways. A call depends on its number and
the seed alone. The calls run in a child process, which names each before it runs it: where one ends the child, it
counts as crashed and a new child goes on behind it. The exit status is 1 if any call was wrong or crashed.
"""

import argparse
import faulthandler
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convpool import planning, registry
from convpool.geometry import Geometry, Settings
from convpool.testing import parity
from convpool.testing.candidates import Through
from convpool.testing.cases import Case
from convpool.testing.parity import Inputs

MOST_PRODUCTS = 1_000_000  # of a call's convolution: more would take the time of many other calls
OUTCOMES = ("right", "refused", "wrong", "crashed")
SECONDS = 60  # for one call: a process whose memory is spoilt may hang as well as end
PROGRESS = 1000  # calls between two lines about it


def _anything(rng: random.Random) -> dict[str, Any]:
    """What a stratum says nothing about; many of these fit no call and are drawn again."""
    pair = _pair
    pool_kernel = pair(rng, 1, 3)
    return {
        "batch": rng.randint(1, 4),
        "in_channels": rng.randint(1, 9),
        "out_channels": rng.randint(1, 20),
        "size": pair(rng, 3, 12),
        "kernel": pair(rng, 1, 4),
        "stride": (1, 1) if rng.random() < 0.8 else pair(rng, 1, 3),
        "padding": pair(rng, 0, 2),
        "dilation": (1, 1) if rng.random() < 0.9 else pair(rng, 1, 2),
        "groups": 1,
        "pool_kernel_size": pool_kernel,
        "pool_stride": pool_kernel if rng.random() < 0.6 else pair(rng, 1, 3),
        "pool_padding": (0, 0) if rng.random() < 0.7 else (rng.randint(0, 1), rng.randint(0, 1)),
        "pool_dilation": (1, 1) if rng.random() < 0.9 else pair(rng, 1, 2),
        "ceil_mode": rng.random() < 0.3,
        "contiguous_output": rng.random() < 0.1,
    }


def _pair(rng: random.Random, least: int, most: int) -> tuple[int, int]:
    return rng.randint(least, most), rng.randint(least, most)


def _groups(rng: random.Random) -> dict[str, Any]:
    groups = rng.randint(2, 20)
    depthwise = rng.random() < 0.5
    channels = groups if depthwise else groups * rng.randint(1, 4)
    return {"groups": groups, "in_channels": channels, "out_channels": groups * rng.randint(1, 3)}


def _empty_windows(rng: random.Random) -> dict[str, Any]:
    return {
        "size": _pair(rng, 1, 6),
        "pool_kernel_size": _pair(rng, 2, 4),
        "pool_stride": _pair(rng, 1, 4),
        "pool_padding": _pair(rng, 0, 2),
        "pool_dilation": _pair(rng, 1, 6),
        "ceil_mode": True,
    }


def _one_input_channel(rng: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {"in_channels": 1, "batch": rng.randint(1, 5)}
    if rng.random() < 0.5:  # a single column of outputs, where vendors' kernels have turned rows into columns
        kernel, stride, padding = _pair(rng, 1, 5), (rng.choice((1, 1, 2)), rng.randint(2, 4)), _pair(rng, 0, 1)
        width = max(1, kernel[1] - 2 * padding[1] + rng.randint(0, stride[1] - 1))
        found |= {"kernel": kernel, "stride": stride, "padding": padding, "size": (rng.randint(3, 12), width)}
        found |= {"dilation": (1, 1), "pool_kernel_size": (rng.randint(1, 3), 1), "pool_padding": (0, 0)}
    return found


def _many_products(rng: random.Random) -> dict[str, Any]:
    kernel = _pair(rng, 5, 7)
    least = 1500 // (kernel[0] * kernel[1]) + 1
    return {
        "batch": rng.randint(1, 2),
        "in_channels": rng.randint(least, least + 8),
        "size": _pair(rng, 5, 9),
        "kernel": kernel,
    }


def _winograd(rng: random.Random) -> dict[str, Any]:
    return {
        "in_channels": rng.randint(12, 24),
        "size": _pair(rng, 4, 12),
        "kernel": (3, 3),
        "stride": (1, 1),
        "dilation": (1, 1),
        "pool_kernel_size": (2, 2),
        "pool_stride": (2, 2),
        "pool_padding": (0, 0),
        "pool_dilation": (1, 1),
    }


@dataclass(frozen=True)
class Stratum:
    """What is drawn in the place of `_anything`'s, and what must hold of the call in the end."""

    draw: Callable[[random.Random], dict[str, Any]]
    holds: Callable[[Geometry, Settings], bool] = lambda geometry, settings: True


STRATA = {
    "stride above 1": Stratum(lambda rng: {"stride": _pair(rng, 1, 4)}, lambda g, s: s.stride != (1, 1)),
    "groups": Stratum(_groups),
    "dilation": Stratum(lambda rng: {"dilation": _pair(rng, 1, 4)}, lambda g, s: s.dilation != (1, 1)),
    "empty windows": Stratum(_empty_windows, lambda g, s: g.empty_windows),
    "overlapping windows": Stratum(
        lambda rng: {"pool_kernel_size": _pair(rng, 2, 4), "pool_stride": _pair(rng, 1, 3)},
        lambda g, s: any(stride < kernel for stride, kernel in zip(s.pool_stride, s.pool_kernel, strict=True)),
    ),
    "one input channel": Stratum(_one_input_channel),
    "one output channel": Stratum(lambda rng: {"out_channels": 1}),
    "tiny maps": Stratum(
        lambda rng: {"size": _pair(rng, 1, 3), "kernel": _pair(rng, 1, 2), "pool_kernel_size": _pair(rng, 1, 2)}
    ),
    "batch of 16 and more": Stratum(
        lambda rng: {"batch": rng.randint(16, 40), "in_channels": rng.randint(1, 4), "size": _pair(rng, 3, 7)}
    ),
    "many products": Stratum(_many_products, lambda g, s: g.reduction > 1500),
    "Winograd": Stratum(_winograd),
}


def _with_room(
    t: Tensor, more: tuple[int, int, int, int], part: tuple[Any, ...], channels_last: bool = False
) -> Tensor:
    """t's values as that part of a larger tensor."""
    larger = t.new_zeros([size + extra for size, extra in zip(t.shape, more, strict=True)])
    return (_channels_last(larger) if channels_last else larger)[part].copy_(t)


def _channels_last(t: Tensor) -> Tensor:
    """The strides of channels_last even with one channel, where torch's `contiguous` changes nothing."""
    return t.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


_INNER_CHANNELS = (slice(None), slice(1, -1))
# Every way but the expanded ones keeps the values.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda t: t,
    "channels_last": _channels_last,
    "some channels": lambda t: _with_room(t, (0, 2, 0, 0), _INNER_CHANNELS),
    "some channels, channels_last": lambda t: _with_room(t, (0, 2, 0, 0), _INNER_CHANNELS, channels_last=True),
    "transposed": lambda t: t.mT.contiguous().mT,
    "batch innermost": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "flipped": lambda t: t.flip(3),
    "expanded": lambda t: t[:1].expand(t.shape),
    "expanded plane": lambda t: t[:, :, :1, :1].expand(t.shape),
    "misaligned": lambda t: t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t),
    "every other element": lambda t: _with_room(t, (0, 0, 0, t.shape[3]), (..., slice(None, None, 2))),
}
DY_LAYOUTS = ("nchw", "channels_last", "expanded", "expanded plane")


@dataclass(frozen=True)
class Call:
    """One call: its tensors are made of these alone."""

    stratum: str
    case: Case
    layouts: tuple[str, str, str]  # of x, weight, dy
    integers: bool
    seed: int

    @classmethod
    def draw(cls, seed: int, number: int) -> "Call":
        rng = random.Random(f"{seed}/{number}")
        name = list(STRATA)[number % len(STRATA)]
        while True:
            values = _anything(rng) | STRATA[name].draw(rng)
            layers = (values.pop(key) for key in ("batch", "in_channels", "size", "out_channels", "kernel"))
            case = Case(f"{seed}/{number}", *layers, options=values, bias=rng.random() < 0.7)
            if _fits(case, STRATA[name]):
                break
        layouts = (rng.choice(list(LAYOUTS)), rng.choice(list(LAYOUTS)), rng.choice(DY_LAYOUTS))
        return cls(name, case, layouts, rng.random() < 0.6, rng.getrandbits(32))

    def inputs(self, device: str) -> Inputs:
        made = parity.make_inputs(self.case, integers=self.integers, device=device, seed=self.seed)
        x, weight, dy = (
            LAYOUTS[layout](t) for layout, t in zip(self.layouts, (made.x, made.weight, made.dy), strict=True)
        )
        return Inputs(x, weight, made.bias, dy, made.settings)

    def __str__(self) -> str:
        case = self.case
        options = ", ".join(f"{name}={value}" for name, value in case.options.items())
        numbers = "integers" if self.integers else "normal numbers"
        return (
            f"x {case.x_shape} {self.layouts[0]}, weight {case.weight_shape} {self.layouts[1]}, dy {self.layouts[2]}, "
            f"{'bias' if case.bias else 'no bias'}, {numbers}, {options}"
        )


def _fits(case: Case, stratum: Stratum) -> bool:
    if case.options["groups"] > case.in_channels:
        return False
    try:
        g = case.geometry
    except ValueError:
        return False
    products = g.batch * g.out_channels * g.conv_height * g.conv_width * g.reduction
    return products <= MOST_PRODUCTS and stratum.holds(g, g.settings)


def judge(call: Call, backend: str) -> str:
    """An outcome, and after a blank what was wrong."""
    inputs = call.inputs("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")
    try:
        with planning.use_backend(backend):
            results = [parity.check_call(inputs, _op, exact=call.integers)]
            if backend != "auto" and call.seed % 4 == 0:  # winners too, for a quarter of the calls: they take as long
                results.append(parity.check(inputs, backend, exact=call.integers))
    except RuntimeError as error:
        if backend != "auto" and call.case.geometry.empty_windows and "holds no conv output" in str(error):
            return "refused"
        return f"wrong {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    wrong = [str(result) for result in results if not result.ok]
    return "wrong error over bound: " + "; ".join(wrong) if wrong else "right"


_op = Through("auto")  # or by whom `use_backend` names


def work(backend: str, seed: int, numbers: range) -> None:
    """The child's part: names each call, runs it, and says what came of it."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills what torch allocates with NaN, so that nothing stays unwritten
    for number in numbers:
        faulthandler.dump_traceback_later(SECONDS, exit=True)  # until the next call, or until the process has ended
        print("begin", number, flush=True)
        print("end", number, judge(Call.draw(seed, number), backend), flush=True)


def outcomes(backend: str, seed: int, numbers: range, script: Path = Path(__file__)) -> Iterator[tuple[int, str]]:
    """Each call's number and outcome, run by `script` in as many children as it takes.

    Raises:
        RuntimeError: a child ended with no call to blame.
    """
    while numbers:
        part = ["--first", str(numbers.start), "--count", str(len(numbers))]
        command = [sys.executable, str(script), "--worker", "--backend", backend, "--seed", str(seed), *part]
        first, running = numbers.start, None
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    match line.rstrip("\n").split(" ", 2):
                        case ["begin", number]:
                            running = int(number)
                        case ["end", number, outcome]:
                            running, numbers = None, numbers[1:]
                            yield int(number), outcome
            finally:
                child.kill()  # of no effect on one that has ended; else the caller wants no more
        if running is not None:
            numbers = numbers[1:]
            earlier = f"; not its first call: one since {first} may have spoilt its memory" if running > first else ""
            yield running, f"crashed the child ended with status {child.returncode}{earlier}"
        elif numbers:
            raise RuntimeError(f"the child ended with status {child.returncode} before call {numbers.start}")


def survey(backend: str, seed: int, numbers: range, script: Path = Path(__file__)) -> bool:
    """Print what is wrong as it is found and the table at the end; whether nothing was."""
    found: Counter[tuple[str, str]] = Counter()
    for done, (number, outcome) in enumerate(outcomes(backend, seed, numbers, script), 1):
        call = Call.draw(seed, number)
        kind, _, detail = outcome.partition(" ")
        found[call.stratum, kind] += 1
        if kind in ("wrong", "crashed"):
            again = f"python benchmarks/random_geometries.py --backend {backend} --seed {seed} --only {number}"
            print(f"{kind}: {call.stratum}: {detail}\n  {call}\n  {again}", flush=True)
        if done % PROGRESS == 0:
            print(f"{done} of {len(numbers)}", flush=True)
    print("\n" + "\t".join((f"{'stratum':22}", "drawn", *OUTCOMES)))
    for name in [*STRATA, "all"]:
        counts = [sum(n for (s, kind), n in found.items() if kind == o and name in (s, "all")) for o in OUTCOMES]
        print(f"{name:22}", sum(counts), *counts, sep="\t", flush=True)
    return not any(kind in ("wrong", "crashed") for _, kind in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("auto", *registry.backend_names()), default="auto")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="of the one call to run")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="of the first call")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.count) if args.only is None else range(args.only, args.only + 1)
    if args.worker:
        if not torch.cuda.is_available():
            os.environ.setdefault("TRITON_INTERPRET", "1")
        work(args.backend, args.seed, numbers)
        return 0
    return 0 if survey(args.backend, args.seed, numbers) else 1


if __name__ == "__main__":
    sys.exit(main())
