"""Does convpool compute what torch computes on this machine, and on a GPU how fast: `python -m convpool.selfcheck`.

Holds every backend of this machine against torch's own layers in float64 over the table of shapes, what matters most
first. On a GPU it also times the layers of small networks; without one it says so, and Triton's kernels run in Triton's
interpreter. Exit status 1 where a result is wrong, or a check raised, crashed or hung; none of these ends the rest. A
case that is not right gets no speed. A report is whole at any time: what was not reached is in it under that name.
"""

import argparse
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, TypeVar

import torch

from convpool import registry
from convpool.testing import parity
from convpool.testing.candidates import ParityError, compare_layer
from convpool.testing.cases import CASES, SMALL_NETWORKS, Case, by_name
from convpool.testing.isolated import Failure, Isolated
from convpool.testing.machine import pin_precision, setting

Answer = TypeVar("Answer")
Verdict: TypeAlias = Literal["ok", "WRONG", "not served", "raised", "crashed", "hung", "not reached"]


@dataclass(frozen=True)
class Check:
    """One case through one backend; `full` is at the size at which the layer is used."""

    case: str
    full: bool
    dtype: str
    layout: parity.Layout
    backend: str

    @property
    def layer(self) -> Case:
        case = by_name(self.case)
        return case.at_full_size() if self.full else case

    def __str__(self) -> str:
        return f"{self.case}{' (full size)' if self.full else ''} {self.dtype} {self.layout} {self.backend}"


@dataclass(frozen=True)
class Result:
    """`detail`: the errors over their bounds, or the reason."""

    verdict: Verdict
    detail: str = ""

    @property
    def bad(self) -> bool:
        return self.verdict in ("WRONG", "raised", "crashed", "hung")


Examine: TypeAlias = Callable[[Check, torch.device], Result]

# Edges of each kind: a backend that gets these right gets most others right.
_KINDS = (
    *("batch-0", "batch-17", "no-bias", "channels-17-33", "kernel-1", "same-even-dilated", "stride-2-padded"),
    *("dilation-2-padded", "groups-2", "depthwise", "odd-13x9", "one-window", "pool-overlap-padded", "pool-gaps"),
    *("pool-dilated-overlap", "pool-all", "ceil-padded", "contiguous-output-16-32", "mixed-3"),
)
_OTHER_DTYPES = ("bfloat16", "float16", "float64")
_IN_OTHER_DTYPES = ("cnn-1", "cnn-2", "groups-2", "pool-overlap-padded")
# Seconds each in the interpreter; some others take minutes.
_INTERPRETED = ("batch-0", "batch-1", "cnn-1", "lenet5-2", "same-even-dilated")
_MINUTES, _PATIENCE = 10.0, 120.0  # on a GPU, where the longest check compiles half a dozen kernels
_PATIENCE_INTERPRETED = 1800.0


def check_case(check: Check, device: torch.device) -> Result:
    """Exact on integers where the sums are ours, within the bound of rounding on random numbers.

    The vendor's convolutions on GPUs may be fast transforms, which round on integers too.
    """
    pin_precision(device)
    dtype: torch.dtype = getattr(torch, check.dtype)
    plan = registry.backend(check.backend).serves(check.layer.geometry, dtype, device)
    if isinstance(plan, str):
        return Result("not served", plan)
    ours = plan.plan == "fused" or device.type == "cpu"
    for integers in (True, False):
        inputs = parity.make_inputs(check.layer, dtype, check.layout, integers=integers, device=device)
        # Two bytes cannot hold every integer that a sum may come to.
        found = parity.check(inputs, check.backend, exact=integers and ours and dtype.itemsize > 2)
        if not found.ok:
            return Result("WRONG", f"{'integers' if integers else 'random'}: {found}")
    return Result("ok", str(found))


def speeds(case: Case, device: torch.device) -> dict[str, float] | str:
    """By candidate the median seconds of a forward and backward pass: torch's own forms, and Triton's kernels.

    At the size at which people run the layer. Not timed, but said so, if a candidate is not exact on integers: after
    the checks that can only be the vendor's.
    """
    pin_precision(device)
    try:
        timings = compare_layer(parity.make_inputs(case.at_full_size(), device=device), ("triton",))
    except ParityError as error:
        return f"not timed: {error}"
    return {name: timing.median for name, timing in timings.items()}


def planned(cases: Sequence[Case], backends: Sequence[str], *, gpu: bool, named: bool) -> list[Check]:
    """The checks in order of value, those of a case together.

    Layers of small networks, edges of each kind, everything else, and other dtypes. Full sizes are for GPUs. In
    Triton's interpreter only a few cases are checked, unless they were `named`.
    """

    def value(case: Case) -> int:
        return 0 if case in SMALL_NETWORKS else 1 if case.name in _KINDS else 2

    def checks(case: Case, dtype: str) -> Iterator[Check]:
        for backend in backends:
            if backend == "triton" and not (gpu or named or case.name in _INTERPRETED):
                continue
            for full in (False, True) if gpu and backend == "triton" and case.full and dtype == "float32" else (False,):
                for layout in ("nchw", "channels_last"):
                    yield Check(case.name, full, dtype, layout, backend)

    found = [check for case in sorted(cases, key=value) for check in checks(case, "float32")]
    if gpu:
        few = [case for case in cases if case.name in _IN_OTHER_DTYPES]
        found += [check for dtype in _OTHER_DTYPES for case in few for check in checks(case, dtype)]
    return found


class Report:
    """What is known so far: printed line by line, and kept in a file that is whole whenever it is read.

    Attributes:
        results: of each planned check, from the beginning.
        seconds: by case, what `speeds` answered.
        unavailable: by backend, why none of its checks is planned.
    """

    def __init__(self, file: Path | None, where: str) -> None:
        self._file, self._where, self._finished = file, where, False
        self.results: dict[Check, Result] = {}
        self.seconds: dict[str, dict[str, float] | str | Failure] = {}
        self.unavailable: dict[str, str] = {}
        print(where)
        self._write()

    def plan(self, checks: Sequence[Check]) -> None:
        self.results = dict.fromkeys(checks, Result("not reached"))
        self._write()

    def checked(self, check: Check, result: Result) -> None:
        self.results[check] = result
        print(f"{check!s:60} {result.verdict:10} {result.detail}", flush=True)
        self._write()

    def timed(self, case: str, found: dict[str, float] | str | Failure) -> None:
        self.seconds[case] = found
        if isinstance(found, dict):
            print(f"{case:28} " + ", ".join(f"{name} {1e6 * s:.1f} us" for name, s in found.items()), flush=True)
        else:
            print(f"{case:28} {found}", flush=True)
        self._write()

    def finish(self) -> int:
        """The exit status, and why."""
        self._finished = True
        self._write()
        counts = Counter(result.verdict for result in self.results.values())
        bad = [f"{check} {result.verdict}" for check, result in self.results.items() if result.bad]
        bad += [f"{case} {found.kind} when timed" for case, found in self.seconds.items() if isinstance(found, Failure)]
        if not bad and not counts["ok"]:
            bad = ["nothing was checked"]
        print(f"{len(self.results)} checks: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()))
        print(f"exit status 1: {'; '.join(bad)}" if bad else "exit status 0: all that was checked is right")
        return 1 if bad else 0

    def _write(self) -> None:
        if self._file is None:
            return
        seconds = {case: asdict(s) if isinstance(s, Failure) else s for case, s in self.seconds.items()}
        report = {
            "setting": self._where,
            "finished": self._finished,
            "unavailable": self.unavailable,
            "results": [asdict(check) | asdict(result) for check, result in self.results.items()],
            "seconds": seconds or "not measured",
        }
        unfinished = self._file.with_name(self._file.name + ".part")
        unfinished.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(unfinished, self._file)


def main(
    arguments: Sequence[str] | None = None,
    examine: Examine = check_case,
    *,
    clock: Callable[[], float] = time.monotonic,
    patience: float | None = None,
) -> int:
    """Check what the command line asks for and return the exit status.

    Args:
        arguments: the command line; by default this process'.
        examine: the check.
        clock: seconds since any moment.
        patience: seconds that one check may take; by default what the slowest needs here.
    """
    options = _parser().parse_args(arguments)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    longest = patience or (_PATIENCE if gpu else _PATIENCE_INTERPRETED)
    minutes = options.minutes if options.minutes is not None else _MINUTES if gpu else math.inf
    deadline = clock() + 60 * minutes
    report = Report(options.json, setting(device))
    if not gpu:
        print("no GPU: Triton's kernels run in its interpreter, on a few cases unless --cases names them; no speeds")
    with Isolated() as isolated:

        def ask(function: Callable[..., Answer], *arguments: object) -> Answer | Failure | None:
            left = deadline - clock()
            answer = isolated.call(function, *arguments, seconds=min(left, longest)) if left > 0 else None
            cut_short = isinstance(answer, Failure) and answer.kind == "hung" and left < longest
            return None if cut_short else answer

        backends = _present(ask, report)
        cases = [by_name(name) for name in options.cases] if options.cases else CASES
        checks = planned(cases, backends, gpu=gpu, named=bool(options.cases))
        report.plan(checks)
        with _compiling_ahead(checks) if gpu and "triton" in backends else nullcontext():
            _go_through(checks, ask, examine, device, report)
    return report.finish()


class Ask(Protocol):
    """A call in a process of its own; None where time is up."""

    def __call__(self, function: Callable[..., Answer], *arguments: object) -> Answer | Failure | None: ...


def _present(ask: Ask, report: Report) -> list[str]:
    """The backends to check. One that fails to tell fails its checks too, which are reported."""
    found = []
    for name in registry.backend_names():
        missing = ask(_unavailable, name)
        if isinstance(missing, str):
            report.unavailable[name] = missing
            print(f"{name}: {missing}")
        else:
            found.append(name)
    return found


def _go_through(checks: Sequence[Check], ask: Ask, examine: Examine, device: torch.device, report: Report) -> None:
    for (case, _), group in groupby(checks, lambda check: (check.case, check.dtype)):
        of_case = list(group)
        for check in of_case:
            answer = ask(examine, check, device)
            if isinstance(answer, Failure):
                report.checked(check, Result(answer.kind, answer.detail))
            elif answer:
                report.checked(check, answer)
        right = all(report.results[check].verdict in ("ok", "not served") for check in of_case)
        if right and by_name(case) in SMALL_NETWORKS and any(check.full for check in of_case):
            report.timed(case, ask(speeds, by_name(case), device) or "not reached")


def _unavailable(backend: str) -> str | None:
    return registry.backend(backend).unavailable()


@contextmanager
def _compiling_ahead(checks: Sequence[Check]) -> Iterator[None]:
    """Idle cores compile what `checks` will launch; where that fails each check compiles for itself."""
    with ExitStack() as stack:
        try:
            from convpool.testing.ahead import Work, compiling

            launching = [check for check in checks if check.backend == "triton"]
            works = [Work(check.layer, getattr(torch, check.dtype), check.layout) for check in launching]
            stack.enter_context(compiling(works))
        except Exception as error:
            print(f"nothing is compiled ahead: {type(error).__name__}: {error}")
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m convpool.selfcheck", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=[c.name for c in CASES], help="only these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep everything there as well, after every check")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help=f"stop then; the rest is reported as not reached (default: {_MINUTES:.0f} on a GPU, no limit elsewhere)",
    )
    return parser
