"""The CPU kernels on random geometries, with every tensor right beside a page that no one may touch.

An access outside a tensor ends the process, and the last line of its output names the geometry by its seed. What no
page sees is checked after each call: what lies between and beside the elements is as it was, every element of a result
was written, and on small integers, whose sums are exact, all results are those of torch's own layers in float64 (the
moments of patches, which are no integers, to rounding).

Run as a script, in a process of its own.
"""

import argparse
import ctypes
import faulthandler
import mmap
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from convpool import eager, torch_ops
from convpool.cpu import native
from convpool.geometry import Pair
from convpool.protocol import Plan
from convpool.testing.cases import Case
from convpool.testing.parity import Inputs, check_results

MOST_PRODUCTS = 4_000_000  # of a geometry's convolution: float64 takes some 20 ms for them
MOST_PATCH_VALUES = 200  # whose moments are compared: torch multiplies as many float64 matrices for each position
NEEDS = [(dx, dw, db) for dx in (True, False) for dw in (True, False) for db in (True, False) if dx or dw or db]
# What no kernel writes: neither a sum of integers, nor a place in the small windows drawn here, nor DEAD.
POISON = {torch.float32: float("nan"), torch.float64: float("nan"), torch.uint8: 254}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Guarded:
    """A tensor in poisoned memory between two inaccessible pages.

    Its last element ends where the upper page begins; or its first, or the one `shift` before it, begins where the
    lower page ends.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        *,
        at_end: bool,
        shift: int,
    ) -> None:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        page = mmap.PAGESIZE
        size = -(-(extent + shift) * dtype.itemsize // page) * page
        memory = mmap.mmap(-1, size + 2 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for guard in (address, address + page + size):
            if _libc.mprotect(guard, page, 0):  # PROT_NONE
                raise OSError(ctypes.get_errno(), "mprotect")
        count = size // dtype.itemsize
        self.memory = torch.frombuffer(memory, dtype=dtype, offset=page, count=count).fill_(POISON[dtype])
        begin = count - extent if at_end else shift
        self.tensor = self.memory[begin:].as_strided(shape, strides)

    def put(self, values: Tensor) -> "Guarded":
        """Copies values, of an expanded dimension the first."""
        once = tuple(slice(None) if stride else slice(1) for stride in self.tensor.stride())
        self.tensor[once].copy_(values[once])
        return self

    def bits(self) -> Tensor:
        return self.memory.view(torch.uint8).clone()

    def take(self) -> Tensor:
        """The values, which are poison then; fails if anything beside them was written."""
        values, poison = self.tensor.clone(), POISON[self.tensor.dtype]
        self.tensor.fill_(poison)
        untouched = self.memory.isnan() if self.memory.is_floating_point() else self.memory == poison
        assert untouched.all(), "a kernel wrote beside its result"
        return values


def call(
    function: Callable[..., Any], problem: int, inputs: list[Guarded | None], outputs: list[Guarded | None]
) -> tuple[list[Tensor | None], int]:
    """What a function of the library writes to its outputs, which follow its inputs, and what it returns."""
    before = [None if given is None else given.bits() for given in inputs]
    kernel = function(problem, *(None if each is None else each.tensor.data_ptr() for each in inputs + outputs))
    for given, bits in zip(inputs, before, strict=True):
        assert given is None or bits is None or torch.equal(given.bits(), bits), "a kernel wrote to its input"
    return [None if output is None else output.take() for output in outputs], kernel


def draw_case(draw: random.Random) -> Case:
    """A geometry that the kernels take; of each kind that has a kernel of its own, a good share."""
    kind = draw.choice(("any", "any", "2x2", "images", "winograd", "few", "split"))
    while True:
        case = _candidate(draw, kind)
        try:
            g = case.geometry
        except ValueError:  # a kernel or window larger than what it slides over
            continue
        products = g.batch * g.out_channels * g.conv_height * g.conv_width * g.reduction
        if not g.obstacle and products <= MOST_PRODUCTS:
            return case


def _candidate(draw: random.Random, kind: str) -> Case:
    def pair(*values: int) -> Pair:
        first = draw.choice(values)
        return first, draw.choice((first, draw.choice(values)))

    kernel, most_size = pair(*range(1, 8)), draw.choice((8, 20, 60))
    channels = draw.choice((draw.randint(1, 40), draw.choice((8, 16, 32))))  # whole vectors are read where they stand
    groups = draw.choice([n for n in (1, 1, 1, 2, 3, 8) if n <= channels])
    channels -= channels % groups
    options: dict[str, Any] = {"stride": pair(1, 1, 2, 3), "dilation": pair(1, 1, 2, 3)}
    if kind == "winograd":
        kernel, channels, options = (3, 3), groups * draw.choice((draw.randint(12, 40), 16, 32)), {}
    elif kind == "few":
        kernel = draw.choice(((3, 3), (5, 5)))
        channels = groups * (draw.randint(1, 3) if kernel[0] == 3 else 1)
    elif kind == "split":
        kernel, channels, groups, most_size = (7, 7), draw.randint(31, 40), 1, 14
    if kind in ("any", "split"):
        window = pair(1, 2, 2, 3, 4, 6)
        options |= {"pool_kernel_size": window, "pool_stride": pair(1, 2, 2, 3, 4), "pool_dilation": pair(1, 1, 2, 3)}
        options["pool_padding"] = tuple(draw.randint(0, size // 2) for size in window)
    options["padding"] = draw.choice((0, pair(*range(5)), "same"))
    options |= {"ceil_mode": draw.random() < 0.4, "contiguous_output": draw.random() < 0.2, "groups": groups}
    batch = draw.choice((16, 17, 33) if kind == "images" else (1, 2, 16, 17, 33))
    size = (draw.randint(1, most_size), draw.randint(1, most_size))
    outputs = groups * draw.randint(1, max(1, 40 // groups))
    return Case(kind, batch, channels, size, outputs, kernel, options, bias=draw.random() < 0.7)


def draw_strides(draw: random.Random, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Those of either memory format; or of dimensions in any order, gaps between them, some of them expanded."""
    order, usual = draw.choice(([0, 1, 2, 3], [0, 2, 3, 1])), draw.random() < 0.7
    if not usual and draw.random() < 0.5:
        draw.shuffle(order)
    strides, step = [0] * 4, 1
    for axis in reversed(order):
        step += 0 if usual else draw.choice((0, 0, 0, 1, 3))
        strides[axis] = step
        step *= shape[axis]
    if not usual:
        for axis in range(4):
            if draw.random() < 0.1:
                strides[axis] = 0
            elif shape[axis] == 1 and draw.random() < 0.5:
                strides[axis] = draw.choice((1, 2, 5000))  # no element is found by it
    return tuple(strides)


def check(seed: int, library: Any) -> tuple[int, set[str]]:
    """Of the geometry of a seed: how many calls were made, and what was run; AssertionError if one is wrong."""
    draw = random.Random(seed)
    case = draw_case(draw)
    g, s = case.geometry, case.settings
    x_strides, w_strides = draw_strides(draw, g.x_shape), draw_strides(draw, g.weight_shape)
    threads, shift = draw.choice((1, 1, 2, 3)), draw.choice((0, 1))
    print(f"seed {seed}: {case!r}, x {x_strides}, weight {w_strides}, {threads} threads, shift {shift}", flush=True)
    plan = native.BACKEND.serves(g, torch.float32, torch.device("cpu"))
    assert isinstance(plan, Plan), plan
    calls, ran = 0, set[str]()
    expected: dict[str, Tensor] = {}  # each call's results must be equal to the first, which torch's layers are held to

    def agree(names: tuple[str, ...], results: list[Tensor | None], kernel: int) -> None:
        nonlocal calls
        calls += 1
        ran.add(library.convpool_kernel_name(kernel).decode())
        for name, result in zip(names, results, strict=True):
            if result is not None:
                assert torch.equal(expected.setdefault(name, result), result), f"{name} differs between two calls"

    for at_end in (True, False):
        new = partial(Guarded, at_end=at_end, shift=0 if at_end else shift)
        generator = torch.Generator().manual_seed(seed)

        def numbers(shape: tuple[int, ...], generator: torch.Generator = generator) -> Tensor:
            return torch.randint(-2, 3, shape, generator=generator).float()

        x, w = (new(s, t).put(numbers(s)) for s, t in ((g.x_shape, x_strides), (g.weight_shape, w_strides)))
        bias = new((g.out_channels,), (1,)).put(numbers((g.out_channels,))) if case.bias else None
        forward, pool = (native._forward_call(g, x_strides, w_strides, word, threads) for word in ("fused", "split"))
        forward_w = (
            new(g.weight_shape, torch.empty(g.weight_shape).stride()).put(w.tensor) if forward.copies_weight else w
        )
        y, code = new(*forward.results[0]), new(*forward.results[0], torch.uint8)
        dy = new(*forward.results[0]).put(numbers(g.output_shape))
        if plan.plan != "split":
            for winners in (code, None):
                given = [x, forward_w, bias]
                agree(("y", "code"), *call(library.convpool_forward, forward.problem, given, [y, winners]))
        # torch gets copies: its float64 weight gradient of a grouped layer is wrong (2.14.1) where a single image in
        # channels_last has an unusual stride.
        inputs = Inputs(_plain(x), _plain(w), None if bias is None else bias.tensor, dy.tensor, case.settings)
        z = eager.conv(inputs.x, inputs.weight, inputs.bias, g.settings)
        z_strides = torch.empty(z.shape, memory_format=torch.channels_last).stride()
        for winners in (code, None):
            given = [new(z.shape, z_strides).put(z)]
            agree(("y", "code"), *call(library.convpool_pool, pool.problem, given, [y, winners]))
        code.put(expected["code"])
        for needs in NEEDS if case.bias else [needs for needs in NEEDS if not needs[2]]:
            strides = (x_strides if needs[1] else ()), w_strides, code.tensor.stride()
            backward = native._backward_call(g, *strides, needs, threads)
            results = [new(*layout) if needed else None for layout, needed in zip(backward.results, needs, strict=True)]
            given = [x if needs[1] else None, w, dy, code]
            agree(("dx", "dw", "db"), *call(library.convpool_backward, backward.problem, given, results))
        if g.reduction <= MOST_PATCH_VALUES and g.batch:
            moments = native._moments_call(g, x_strides, threads)
            mean = new((s.groups, g.reduction), (g.reduction, 1), torch.float64)
            scatter = new((s.groups, g.reduction, g.reduction), (g.reduction**2, g.reduction, 1), torch.float64)
            agree(("mean", "scatter"), *call(library.convpool_patch_moments, moments.problem, [x], [mean, scatter]))
            if at_end:
                exact = torch_ops.BACKEND.patch_moments(inputs.x, g)._asdict()
                for name, values in exact.items():
                    torch.testing.assert_close(expected[name], values, rtol=1e-10, atol=1e-10)
        if at_end:
            grads = {name: value for name, value in expected.items() if name.startswith("d")}
            parity = check_results(inputs, expected["y"], expected["code"], grads, exact=True)
            assert parity.ok, str(parity)
        if plan.plan != "split":  # other loops form sums that are not finite; other tests hold those against torch's
            x.put(torch.full(g.x_shape, torch.inf))
            call(library.convpool_forward, forward.problem, [x, forward_w, bias], [y, code])
            calls += 1
    return calls, ran


def _plain(given: Guarded) -> Tensor:
    return given.tensor.clone(memory_format=torch.contiguous_format)


def faulty(library: Any, fault: str) -> Any:
    """The library with one mistake in its forward pass, to see that it is found."""

    def forward(problem: int, x: int, w: int, bias: int | None, y: int, code: int | None) -> int:
        if fault == "idle":
            return 0
        if fault == "read":  # all of x one float late: the last one lies beyond it
            library.convpool_forward(problem, x + 4, w, bias, y, code)
        kernel: int = library.convpool_forward(problem, x, w, bias, y, code)
        if fault == "write":
            ctypes.c_float.from_address(y - 4).value = 0
        if fault == "input":
            ctypes.c_float.from_address(x).value += 1
        return kernel

    return SimpleNamespace(
        convpool_forward=forward,
        convpool_pool=library.convpool_pool,
        convpool_backward=library.convpool_backward,
        convpool_patch_moments=library.convpool_patch_moments,
        convpool_kernel_name=library.convpool_kernel_name,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="seed of the first geometry")
    parser.add_argument("--count", type=int, default=20, help="how many geometries")
    parser.add_argument("--fault", choices=("read", "write", "input", "idle"), help="make this mistake")
    arguments = parser.parse_args()
    faulthandler.enable()
    torch.set_num_threads(1)  # of the oracle; the kernels get their own count
    library = native.library()
    if isinstance(library, str):
        raise SystemExit(library)
    if arguments.fault:
        library = faulty(library, arguments.fault)
    calls, kernels = 0, Counter[str]()
    for seed in range(arguments.first, arguments.first + arguments.count):
        made, run = check(seed, library)
        calls += made
        kernels.update(run)
    shares = ", ".join(f"{name} {count}" for name, count in sorted(kernels.items()))
    print(f"{arguments.count} geometries from seed {arguments.first}, {calls} calls: {shares}")


if __name__ == "__main__":
    main()
