"""`python -m mnistfast.bench`: measure what the fused layers gain here; `... time-to`: the time to an accuracy."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnistfast import cli
from mnistfast.config import Parser, TimeToOptions, pick
from mnistfast.errors import ThresholdError
from mnistfast.report.page import percent

PROG = "mnistfast bench"
TIME_TO = "time_to.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return cli.run(_bench, argv)


def _bench(argv: Sequence[str]) -> int:
    if argv and argv[0] == "time-to":
        return _time_to(argv[1:])
    raise NotImplementedError


def _time_to(argv: Sequence[str]) -> int:
    prog = f"{PROG} time-to"
    description = "Time recipes from images in memory to final weights, on fused layers and on torch's own, in turns."
    options = pick(TimeToOptions, Parser(prog, description, TimeToOptions).given(argv))

    began = time.perf_counter()
    from mnistfast.engine.files import make_folder, write_json
    from mnistfast.measure.time_to import time_to  # torch comes with it
    from mnistfast.report.screen import Screen

    importing = time.perf_counter() - began
    screen = Screen(quiet=options.quiet or options.json)
    result = time_to(options, shlex.join([*prog.split(), *argv]), screen)
    result["outside_the_clock"]["importing"] = importing
    if options.json:
        print(json.dumps(result))
    for line in _entrant_lines(result):
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


def _entrant_lines(result: dict[str, Any]) -> list[str]:
    first = result["entrants"][0]["seconds"]["median"]
    lines = []
    for entrant in result["entrants"]:
        seconds, accuracy = entrant["seconds"], entrant["accuracy"]
        lines.append(
            f"{entrant['name']:<48} {seconds['median']:8.3f} s [{seconds['low']:.3f}, {seconds['high']:.3f}], "
            f"{seconds['median'] / first:5.2f} times the first; mean accuracy {percent(accuracy['mean'])} "
            f"[{percent(accuracy['low'])}, {percent(accuracy['high'])}], {entrant['n']} seeds, {entrant['steps']} steps"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
