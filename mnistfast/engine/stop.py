"""Stopping a run from outside, at the end of a step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user or the system asked the program to stop; its exit code is 128 + `signum`, as shells have it."""

    def __init__(self, signum: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.signum = signum


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM inside `with` into a flag; a second one raises `Interrupted` at once.

    Attributes:
        signum: the signal that came, None so far.
    """

    signum: int | None = None

    def __enter__(self) -> StopRequest:
        self._previous: dict[int, Any] = {}
        try:
            for signum in SIGNALS:
                self._previous[signum] = signal.signal(signum, self._note)
        except ValueError:  # not the main thread: signals are the caller's
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise Interrupted(signum, "stopped at once; the last saved state is whole")
        self.signum = signum
