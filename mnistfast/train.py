"""`python -m mnistfast.train`: train a model, save it, and say how good it is."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mnistfast import training_command
from mnistfast.options import process
from mnistfast.options.learning import TrainConfig
from mnistfast.report.page import accuracy_line, percent

if TYPE_CHECKING:
    from mnistfast.results.finish import Outcome

PROG = "mnistfast train"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.run(_train, argv)


def _train(argv: Sequence[str]) -> int:
    description = "Train a model, save it, and say how good it is on the test images."
    flags = training_command.parser(PROG, description, TrainConfig).given(argv)
    config, options = training_command.read(PROG, TrainConfig, flags)
    if flags.get("print_config"):
        print(config.to_yaml(), end="")
        return 0

    if options.data_check:
        return training_command.check_data(config, options)

    from mnistfast.report.screen import Screen
    from mnistfast.tasks.train import train  # torch comes with it: not before the options are known to be good

    others = os.environ.get("RANK", "0") != "0"  # of several processes, the first one speaks
    screen = Screen(quiet=options.quiet or options.json or others)
    outcome = train(config, options, shlex.join([*PROG.split(), *argv]), screen)
    if outcome is None:
        return 0
    if options.json:
        print(json.dumps(_as_json(outcome)))
    else:
        for line in _summary(outcome):
            screen.say(line)
    return 0


def _summary(outcome: Outcome) -> list[str]:
    from mnistfast.runs.checkpoint import BEST
    from mnistfast.runs.run_folder import REPORT

    best = f"epoch {outcome.best['epoch']}"
    if "val_accuracy" in outcome.best:
        best += f", validation accuracy {percent(outcome.best['val_accuracy'])}"
    return [
        f"test accuracy {accuracy_line(outcome.scores)} on {outcome.test}",
        f"trained in    {outcome.seconds:.1f} s",
        f"best weights  {outcome.folder / BEST} ({best})",
        f"report        {outcome.folder / REPORT}",
        f"next          mnistfast evaluate {shlex.quote(str(outcome.folder))}",
    ]


def _as_json(outcome: Outcome) -> dict[str, Any]:
    scores = {key: outcome.scores[key] for key in ("accuracy", "n", "interval", "nll", "calibration_error")}
    return {"run": str(outcome.folder), **scores, "best": outcome.best, "seconds": round(outcome.seconds, 3)}


if __name__ == "__main__":
    sys.exit(main())
