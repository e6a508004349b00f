"""`python -m mnistfast.search`: look for better settings of a training, on validation images alone."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields

from mnistfast.options import process
from mnistfast.options.commands import SearchOptions
from mnistfast.options.learning import TrainConfig
from mnistfast.options.parser import Parser, pick
from mnistfast.report.page import percent

PROG = "mnistfast search"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.run(_search, argv)


def _search(argv: Sequence[str]) -> int:
    description = "Look for better settings of a training; options that are given stay as they are."
    flags = Parser(PROG, description, TrainConfig, SearchOptions).given(argv)
    options = pick(SearchOptions, flags)
    given = {option.name: flags[option.name] for option in fields(TrainConfig) if option.name in flags}
    TrainConfig(**given)  # which refuses values that cannot work

    from mnistfast.report.screen import Screen
    from mnistfast.runs.run_folder import SEARCHED  # torch comes with it
    from mnistfast.tasks.search import search

    screen = Screen(quiet=options.quiet or options.json)
    best = search(given, options, shlex.join([*PROG.split(), *argv]), screen)
    if options.json:
        print(json.dumps(asdict(best) | {"folder": str(best.folder)}))
        return 0
    file = best.folder / SEARCHED
    preset = "diverged" if best.preset_accuracy is None else f"had {percent(best.preset_accuracy)}"
    screen.say(f"best of {best.trials}: validation accuracy {percent(best.accuracy)}; the preset's settings")
    screen.say(f"{preset}. The best of many is lucky too: expect less on new images.")
    screen.say(f"next          mnistfast train --config {shlex.quote(str(file))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
