"""`python -m mnistfast.export RUN`: write a model for other programs, proven to answer as it does here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mnistfast.options import process
from mnistfast.options.commands import ExportOptions
from mnistfast.options.parser import Parser, pick
from mnistfast.text import show

if TYPE_CHECKING:
    from mnistfast.results.exporter import Written


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.run(_export, argv)


def _export(argv: Sequence[str]) -> int:
    parser = Parser("mnistfast export", "Write a model for other programs, checked against the model.", ExportOptions)
    parser.add_argument("checkpoint", metavar="RUN|CKPT", help="a run's folder (its best weights) or a checkpoint")
    given = parser.given(argv)
    options = pick(ExportOptions, given)

    from mnistfast.devices import use_threads  # torch comes with it: not before the options are known to be good
    from mnistfast.results.exporter import export

    use_threads(options.threads)
    written = export(given["checkpoint"], options.formats, options.out, overwrite=options.overwrite, head=options.head)
    if options.json:
        print(json.dumps([asdict(file) | {"path": str(file.path)} for file in written]))
    elif not options.quiet:
        for file in written:
            show(_line(file))
    return 0


def _line(file: Written) -> str:
    times = ", ".join(
        f"{time:.2f} ms for {count} image{'s' * (count > 1)}" for count, time in file.milliseconds.items()
    )
    return f"{file.path}: {file.size / 1e3:,.0f} kB, largest difference {file.difference:.1e}, {times}"


if __name__ == "__main__":
    sys.exit(main())
