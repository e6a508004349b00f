"""Does convpool compute what torch computes on this machine, and on a GPU how fast: `python -m convpool.selfcheck`.

Holds every backend of this process against torch's own layers in float64 over the table of shapes. On a GPU it then
times the layers of small networks; without one it says so, and Triton's kernels run in Triton's interpreter. Exit
status 1 where a result is wrong; a case that is wrong gets no speed.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from convpool import parity, planning
from convpool.cases import CASES, SMALL_NETWORKS, Case, by_name
from convpool.timing import compare_layer, pin_precision, setting


@dataclass(frozen=True)
class Result:
    """One case through one backend: `verdict` is "ok", "WRONG" or "not served", `detail` the errors or the reason."""

    case: str
    layout: str
    backend: str
    verdict: str
    detail: str


# Seconds each; some others take minutes.
_INTERPRETED = ("batch-0", "batch-1", "cnn-1", "lenet5-2", "same-even-dilated")


def check_case(case: Case, backend: str, layout: parity.Layout, device: torch.device) -> Result:
    """Exact on integers, within the bound of rounding on random numbers."""
    served = planning.backend(backend).serves(case.geometry, torch.float32, device)
    if isinstance(served, str):
        return Result(case.name, layout, backend, "not served", served)
    for integers in (True, False):
        inputs = parity.make_inputs(case, layout=layout, integers=integers, device=device)
        found = parity.check(inputs, backend, exact=integers)
        if not found.ok:
            return Result(case.name, layout, backend, "WRONG", f"{'integers' if integers else 'random'}: {found}")
    return Result(case.name, layout, backend, "ok", str(found))


def speeds(cases: Sequence[Case], device: torch.device) -> dict[str, dict[str, float]]:
    """By case and candidate the median seconds of a forward and backward pass: torch's own forms, and Triton's kernels.

    Only layers of small networks, at the size at which people run them.
    """
    seconds = {}
    for case in cases:
        if case in SMALL_NETWORKS:
            inputs = parity.make_inputs(case.at_full_size(), device=device)
            timings = compare_layer(inputs, ("triton",))
            seconds[case.name] = {name: timing.median for name, timing in timings.items()}
            print(f"{case.name:28} " + ", ".join(f"{name} {1e6 * s:.1f} us" for name, s in seconds[case.name].items()))
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    pin_precision(device)
    print(setting(device))
    if not gpu:
        print("no GPU: Triton's kernels run in its interpreter, on a few cases unless --cases names them; no speeds")
    backends = []
    for name in planning.backend_names():
        missing = planning.backend(name).unavailable()
        if missing:
            print(f"{name}: {missing}")
        else:
            backends.append(name)
    cases = [by_name(name) for name in options.cases] if options.cases else list(CASES)
    results = []
    for case in cases:
        for backend in backends:
            if backend == "triton" and not (gpu or options.cases or case.name in _INTERPRETED):
                continue
            for layout in ("nchw", "channels_last"):
                results.append(check_case(case, backend, layout, device))
                print(
                    "{0.case:28} {0.layout:14} {0.backend:10} {0.verdict:10} {0.detail}".format(results[-1]), flush=True
                )
    wrong = {result.case for result in results if result.verdict == "WRONG"}
    seconds = speeds([case for case in cases if case.name not in wrong], device) if gpu and "triton" in backends else {}
    if options.json:
        report = {
            "setting": setting(device),
            "results": [vars(r) for r in results],
            "seconds": seconds or "not measured",
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{len(results)} checks, {len(wrong)} cases wrong" + (f": {', '.join(sorted(wrong))}" if wrong else ""))
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m convpool.selfcheck", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=[c.name for c in CASES], help="only these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    return parser


def _run() -> int:
    """As `main`; without a GPU in a process of its own, for Triton decides whether to interpret when it is first
    imported."""
    if torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ:
        return main()
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run([sys.executable, "-m", "convpool.selfcheck", *sys.argv[1:]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(_run())
