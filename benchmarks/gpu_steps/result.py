"""What is known so far, as a file that is whole whenever it is read: a JSON object with a row a line."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WRITING = 0.1  # of the time at most: writing takes longer with every row


class Result:
    """Rows and how each step ended, kept as they come; the file is replaced at one stroke.

    The file holds the head's entries, `finished`, `steps` (by name: `ended`, `seconds`) and `rows`, each with its
    `step`.
    """

    def __init__(self, file: Path, head: Mapping[str, Any]) -> None:
        self._file, self._head, self._finished = file, dict(head), False
        self._steps: dict[str, dict[str, Any]] = {}
        self._rows: list[str] = []
        self._next = 0.0  # when a row may be written again, by time.monotonic()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, step: str, row: Mapping[str, Any]) -> None:
        """Keep a row; where rows come too fast to write, with the next one."""
        self._rows.append(json.dumps({"step": step, **row}, default=str))
        if time.monotonic() >= self._next:
            self._write()

    def ended(self, step: str, how: str, seconds: float) -> None:
        """Keep how a step ended: "done", "out of time", "not reached" or what went wrong."""
        self._steps[step] = {"ended": how, "seconds": round(seconds, 1)}
        self._write()

    def finish(self) -> None:
        """Mark the result as complete: nothing more will come."""
        self._finished = True
        self._write()

    def _write(self) -> None:
        began = time.monotonic()
        head = json.dumps({**self._head, "finished": self._finished, "steps": self._steps}, default=str)
        unfinished = self._file.with_name(self._file.name + ".part")
        unfinished.write_text(f'{head[:-1]}, "rows": [\n' + ",\n".join(self._rows) + "\n]}\n")
        os.replace(unfinished, self._file)
        ended = time.monotonic()
        self._next = ended + (ended - began) / _WRITING


def read(file: Path) -> dict[str, Any]:
    """Read a result."""
    return json.loads(file.read_text())
