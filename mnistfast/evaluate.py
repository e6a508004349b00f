"""`python -m mnistfast.evaluate RUN ...`: score a run or a checkpoint, or several as one, on a test set."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnistfast.errors import ThresholdError
from mnistfast.options import process
from mnistfast.options.commands import EvaluateOptions
from mnistfast.options.parser import Parser, pick
from mnistfast.report.page import accuracy_line, class_lines, percent
from mnistfast.text import show


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.run(_evaluate, argv)


def _evaluate(argv: Sequence[str]) -> int:
    description = "Score a run or a checkpoint on a test set; of several, the mean of their probabilities."
    parser = Parser("mnistfast evaluate", description, EvaluateOptions)
    help_text = "a run's folder (its best weights) or a checkpoint; several answer together"
    parser.add_argument("checkpoints", metavar="RUN|CKPT", nargs="+", help=help_text)
    given = parser.given(argv)
    options = pick(EvaluateOptions, given)

    from mnistfast.results.evaluation import (
        evaluate,  # torch comes with it: not before the options are known to be good
    )

    scores, written = evaluate(given["checkpoints"], options)
    if options.json:
        print(json.dumps(scores))
    elif not options.quiet:
        for line in _summary(scores, written):
            show(line)
    if options.min_accuracy is not None and scores["accuracy"] < options.min_accuracy:
        raise ThresholdError(
            f"accuracy {percent(scores['accuracy'])} < {percent(options.min_accuracy)}", "--min-accuracy asks for more"
        )
    return 0


def _summary(scores: dict[str, Any], written: list[Path]) -> list[str]:
    calibrated, raw = (
        f"negative log-likelihood {scores[f'nll{suffix}']:.4f}, calibration error "
        f"{percent(scores[f'calibration_error{suffix}'])}"
        for suffix in ("", "_uncalibrated")
    )
    several, temperature = len(scores["alone"]) > 1, scores["temperature"]  # several are calibrated one by one
    return [
        *([scores["notice"]] if scores["notice"] else []),
        *(
            f"alone         {percent(accuracy)}  {path}"
            for path, accuracy in zip(scores["checkpoints"], scores["alone"], strict=True)
            if several
        ),
        *([f"looks         {(2 * scores['tta'] + 1) ** 2} at each image"] if scores["tta"] else []),
        f"accuracy      {accuracy_line(scores)} on the test images of {scores['data']} ({scores['source']})",
        *([f"calibrated    {calibrated} (temperature {temperature:.3f})"] if several or temperature != 1 else []),
        f"uncalibrated  {raw}",
        *class_lines(scores),
        f"written       {', '.join(map(str, written))}",
    ]


if __name__ == "__main__":
    sys.exit(main())
