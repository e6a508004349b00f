"""`mnistfast <command>`: hands the rest of the line to the command's own module."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from mnistfast import __version__
from mnistfast.errors import UsageError, nearest
from mnistfast.options import process

COMMANDS = {
    "train": "train a model, save it and say how good it is",
    "search": "look for a better learning rate, batch size and the like",
    "finetune": "make a trained model good at a new task",
    "evaluate": "score a run or a checkpoint on a test set",
    "predict": "read photographs and drawings",
    "export": "write a model as ONNX, .pt2 and safetensors, and check that they agree",
    "bench": "measure what the fused layers gain, and the time to an accuracy",
    "demo": "draw a digit in the browser and see it read",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    return process.run(_dispatch, argv)


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: mnistfast COMMAND [options]\n\ncommands:")
        print("\n".join(f"  {name:<10}{purpose}" for name, purpose in COMMANDS.items()))
        print("\nmnistfast COMMAND --help lists the options of a command; mnistfast --version the version.")
        return 0 if argv else UsageError.code
    if argv[0] == "--version":
        print(f"mnistfast {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise UsageError(
            f"unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}", f"The commands are {', '.join(COMMANDS)}"
        )
    return importlib.import_module(f"mnistfast.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
