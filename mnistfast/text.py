"""Lines for people. Names in them come from files: what a terminal would obey in one is shown instead."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TextIO


def printable(text: str) -> str:
    """Returns `text` with escapes for what moves, hides or reverses others: control characters, line ends, marks."""
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode() for c in text
    )


def show(line: str, stream: TextIO | None = None) -> None:
    """Prints one line, to stdout unless `stream` is given. All that people read goes through here."""
    print(printable(line), file=stream, flush=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the cells of each row as a line, each column as wide as its widest cell and two spaces."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) + 2 for column in zip(*shown, strict=True)]
    return ["".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
