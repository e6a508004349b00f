"""`python -m mnistfast.bench`: measure what the fused layers gain here; `... time-to`: the time to an accuracy."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from mnistfast.errors import ThresholdError
from mnistfast.options import process
from mnistfast.options.commands import BenchOptions, TimeToOptions
from mnistfast.options.parser import Parser, pick
from mnistfast.report.page import percent
from mnistfast.text import aligned

PROG = "mnistfast bench"
RESULT, REPORT, TIME_TO = "bench.json", "REPORT.md", "time_to.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.run(_bench, argv)


def _bench(argv: Sequence[str]) -> int:
    if argv and argv[0] == "time-to":
        return _time_to(argv[1:])
    description = "Measure what the fused layers gain here. `mnistfast bench time-to --help`: the time to an accuracy."
    options = pick(BenchOptions, Parser(PROG, description, BenchOptions).given(argv))

    from mnistfast.files.atomic import make_folder, write_atomic, write_json
    from mnistfast.measure import trust
    from mnistfast.measure.page import report
    from mnistfast.measure.plots import pictures
    from mnistfast.measure.suite import run  # torch comes with it
    from mnistfast.report.screen import Screen
    from mnistfast.runs.run_folder import RUNS

    screen = Screen(quiet=options.quiet or options.json)
    result = run(options, shlex.join([*PROG.split(), *argv]), screen)
    folder = make_folder(Path(options.out) if options.out else RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-bench")
    write_json(folder / RESULT, result)
    drawn = pictures(result["rows"])
    for name, picture in drawn.values():
        write_atomic(folder / name, picture)
    write_atomic(folder / REPORT, report(result, {title: name for title, (name, _) in drawn.items()}))
    if options.json:
        print(json.dumps(result))
    screen.say(f"report {folder / REPORT}")
    if result["wrong"]:
        raise ThresholdError(
            f"{len(result['wrong'])} of the workloads compute something else than torch",
            "They have no speed",
            f"see {folder / REPORT}",
        )
    unsteady = trust.unsteady_rows(result["rows"])
    if options.strict and unsteady:
        raise ThresholdError(
            f"not steady: {'; '.join(unsteady)}",
            f"--strict takes no time whose spread is over {100 * trust.LARGEST_SPREAD:.0f} %",
            f"leave the machine alone, or more --seconds than {options.seconds:g}",
        )
    return 0


def _time_to(argv: Sequence[str]) -> int:
    prog = f"{PROG} time-to"
    description = "Time recipes from images in memory to final weights, on fused layers and on torch's own, in turns."
    options = pick(TimeToOptions, Parser(prog, description, TimeToOptions).given(argv))

    began = time.perf_counter()
    from mnistfast.files.atomic import make_folder, write_json
    from mnistfast.measure.page import entrants
    from mnistfast.measure.time_to import time_to  # torch comes with it
    from mnistfast.report.screen import Screen

    importing = time.perf_counter() - began
    screen = Screen(quiet=options.quiet or options.json)
    result = time_to(options, shlex.join([*prog.split(), *argv]), screen)
    result["outside_the_clock"]["importing"] = importing
    if options.json:
        print(json.dumps(result))
    header, rows = entrants(result)
    for line in aligned([header, *rows]):
        screen.say(line)
    if options.out:
        file = make_folder(Path(options.out)) / TIME_TO
        write_json(file, result)
        screen.say(f"written {file}")
    reached = result["entrants"][0]["accuracy"]["mean"]
    if reached < options.target / 100:
        raise ThresholdError(
            f"mean accuracy {percent(reached)} over {options.seeds} seeds < {options.target:g} %",
            "--target asks for more",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
