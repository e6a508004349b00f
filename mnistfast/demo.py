"""`python -m mnistfast.demo`: a page on which one draws a digit and sees live what a model makes of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mnistfast.options import process
from mnistfast.options.commands import DemoOptions
from mnistfast.options.parser import Parser, pick
from mnistfast.text import show

if TYPE_CHECKING:
    from mnistfast.web.server import DemoServer


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command until it is stopped and returns its exit code."""
    return process.run(_demo, argv)


def _demo(argv: Sequence[str]) -> int:
    description = "Serve a page on which one draws a digit and sees live what a model makes of it."
    options = pick(DemoOptions, Parser("mnistfast demo", description, DemoOptions).given(argv))

    from mnistfast.devices import use_threads  # torch comes with it
    from mnistfast.results.predictor import Predictor
    from mnistfast.web.server import DemoServer

    use_threads(options.threads)
    predictor = Predictor(options.checkpoint, options.device)
    with DemoServer(predictor, options.host, options.port) as server:
        _announce(server, options)
        server.serve_forever()
    return 0


def _announce(server: DemoServer, options: DemoOptions) -> None:
    if options.json:
        print(json.dumps({"url": server.url, "checkpoint": str(server.predictor.path)}), flush=True)
    elif not options.quiet:
        show(f"{server.predictor.path} reads what you draw at {server.url} (Ctrl-C stops)")


if __name__ == "__main__":
    sys.exit(main())
