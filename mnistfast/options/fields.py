"""Fields of dataclasses that are options of commands, and the checks that their values go through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

from mnistfast.errors import UsageError, nearest

HEAD_HELP = "of a fine-tuned model: 0 is its present task's head, 1 that of the task before, and so on"
DEVICE_HELP = "auto, cpu, cuda, cuda:1, mps"
THREADS_HELP = "CPU threads; default: torch's choice"


def option(default: Any, text: str, *, flag: str = "", preset: bool = False) -> Any:
    """Returns a field; `flag` is its option where that is not its name, `preset` says that a preset may set it."""
    return field(default=default, metadata={"help": text, "flag": flag, "preset": preset})


def require(name: str, value: Any, test: Callable[[Any], bool], allowed: str) -> None:
    """Raises UsageError unless `value` of the option `name` passes `test`; `allowed` says in words what would."""
    if not test(value):
        raise UsageError(f"--{name.replace('_', '-')} is {value}", f"It must be {allowed}")


def require_positive(options: object, *names: str) -> None:
    """Raises UsageError unless each of these options is None or at least 1."""
    for name in names:
        require(name, getattr(options, name), lambda value: value is None or value >= 1, "at least 1")


def require_threads(count: int | None) -> None:
    """Raises UsageError unless `count` is None or a number of threads that a process can have."""
    require("threads", count, lambda value: value is None or 1 <= value <= 1024, "from 1 to 1024")


def one_of(name: str, value: str, choices: Sequence[str] | Mapping[str, Any]) -> None:
    """Raises UsageError unless `value` of the option `name` is among `choices`; it names the nearest."""
    if value not in choices:
        raise UsageError(f"unknown {name} {value!r}{nearest(value, choices)}", f"--{name} takes {', '.join(choices)}")
