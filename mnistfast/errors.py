"""The failures a user can meet: one class per exit code, each message says what, why and how to mend it.

Anything that is not a `MnistfastError` is a bug of ours (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from mnistfast.text import printable


class MnistfastError(Exception):
    """A failure that the user can act on.

    `str(error)` is the line the user reads: `WHAT. WHY. FIX: ...`, empty parts left out, control characters escaped.

    Attributes:
        code: exit code of the process.
        kind: the class of failure as one word, for `--json`.
        what: what went wrong, naming the file or value.
        why: the reason, if it is known.
        fix: a command or an option that helps, if there is one.
    """

    code: int = 1
    kind: str = "internal"

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what, why, fix)  # all three, so that the error survives pickling
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        parts = [part for part in (self.what, self.why, self.fix and f"FIX: {self.fix}") if part]
        ended = [part if part.endswith((".", "?", "!")) else f"{part}." for part in parts[:-1]]
        return printable(" ".join([*ended, *parts[-1:]]))


class UsageError(MnistfastError):
    """An option or a value that cannot work."""

    code, kind = 2, "usage"


class DataError(MnistfastError):
    """A data set that is missing, damaged or contradicts itself."""

    code, kind = 3, "data"


class CheckpointError(MnistfastError):
    """A checkpoint or model that is missing, damaged or another one than asked for."""

    code, kind = 4, "checkpoint"


class DivergedError(MnistfastError):
    """Training whose loss is no longer a finite number."""

    code, kind = 5, "diverged"


class DeviceError(MnistfastError):
    """A device, an optional dependency or memory that is not there."""

    code, kind = 6, "device"


class StorageError(MnistfastError):
    """A disk, a permission or the network that says no."""

    code, kind = 7, "storage"


class ThresholdError(MnistfastError):
    """A threshold or parity that the user asked for and that was missed."""

    code, kind = 8, "threshold"


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # in torch's RuntimeErrors


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether Python or torch raised `error` because memory ran out."""
    if isinstance(error, RuntimeError):
        return any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns " (did you mean 'lenet5'?)" for the choice most like `name`, or "" when none is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)  # 0.6 offers lenet5 for resnet152
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""
