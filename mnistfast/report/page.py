"""REPORT.md: one page about one run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mnistfast.text import aligned, printable


def percent(share: float) -> str:
    """Returns 0.9876 as `98.76 %`."""
    return f"{100 * share:.2f} %"


def accuracy_line(scores: Mapping[str, Any]) -> str:
    """Returns the accuracy with its interval in words."""
    low, high = scores["interval"]
    return f"{percent(scores['accuracy'])} (95 % interval {100 * low:.2f} to {percent(high)}, n = {scores['n']:,})"


# What Markdown or GitHub would obey: `_` between letters, `[` without what makes a link, `#` inside a line are words.
_MARKS = re.compile(r"\\(?=[!-/:-@\[-`{-~])|[`*~$|]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|^[#>]")


def plain(text: str) -> str:
    """Returns Markdown that shows `text`, whatever is in it, on one line."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", printable(text)).replace("<", "&lt;")
    return _MARKS.sub(r"\\\g<0>", text)


def code(text: str) -> str:
    """Returns Markdown that shows `text` as code, on one line."""
    text = printable(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table of cells that are plain text."""
    ruled = [[plain(str(cell)) for cell in line] for line in (header, *rows)]
    ruled.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in ruled)


CLASS_COLUMNS = ("class", "precision", "recall", "F1", "images")


def class_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """Returns the cells of `CLASS_COLUMNS` for each class."""
    return [
        [row["class"], *(percent(row[key]) for key in ("precision", "recall", "f1")), f"{row['support']:,}"]
        for row in scores["per_class"]
    ]


def class_lines(scores: Mapping[str, Any]) -> list[str]:
    """Returns the per-class figures as lines for a screen."""
    return aligned([CLASS_COLUMNS, *class_rows(scores)])


def report(
    title: str,
    scores: Mapping[str, Any],
    test: str,
    facts: Mapping[str, object],
    settings: Mapping[str, object],
    command: str,
) -> str:
    """Returns the page.

    Args:
        title: its heading.
        scores: of `metrics.score` on the test set.
        test: which images were scored, in words.
        facts: what else is worth a line (time, parameters, device).
        settings: the resolved options.
        command: the line that does it again.
    """
    rows = [["as the model gives them", *_pair(scores, "_uncalibrated")]]
    fitted = "No validation images were held out to calibrate them on."
    if scores["temperature"] != 1:  # as it stays where nothing was held out
        rows.insert(0, [f"calibrated (temperature {scores['temperature']:.3f})", *_pair(scores, "")])
        fitted = "The temperature was fitted on the validation images."
    calibration = table(["probabilities", "negative log-likelihood", "calibration error"], rows)
    return "\n\n".join(
        [
            f"# {plain(title)}",
            f"**Test accuracy {accuracy_line(scores)}** on {plain(test.rstrip('.'))}.",
            table(["", ""], list(facts.items())),
            "## Training",
            "![Loss and accuracy over the epochs](curves.png)",
            "## Test, class by class",
            table(CLASS_COLUMNS, class_rows(scores)),
            "![Confusion matrix](confusion.png)",
            "## Probabilities",
            calibration,
            f"The calibration error is the mean gap between confidence and accuracy over 15 bins. {fitted}",
            "## Worst errors",
            "![The worst errors](errors.png)",
            "## Settings",
            table(["option", "value"], list(settings.items())),
            f"Again: {code(command)}\n",
        ]
    )


def _pair(scores: Mapping[str, Any], suffix: str) -> list[str]:
    return [f"{scores['nll' + suffix]:.4f}", percent(scores["calibration_error" + suffix])]
