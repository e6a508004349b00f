"""Stopping a run from outside, at the end of a step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

# What comes when the terminal is closed, where the system has it. System and shell may both send one: the second
# says nothing new. Under nohup it is ignored, and stays so.
HANGUP: int | None = getattr(signal, "SIGHUP", None)


class Interrupted(BaseException):
    """The user or the system asked the program to stop; its exit code is 128 + `signum`, as shells have it."""

    def __init__(self, signum: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.signum = signum


def heeded(*signums: int) -> list[int]:
    """Returns `signums` and, unless it is ignored, `HANGUP`: the signals to handle."""
    if HANGUP is None or signal.getsignal(HANGUP) is signal.SIG_IGN:
        return [*signums]
    return [*signums, HANGUP]


class StopRequest:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP inside `with` into a flag; a second one raises `Interrupted` at once.

    A second SIGHUP does nothing, also after the `with`.

    Attributes:
        signum: the signal that came, None so far.
    """

    signum: int | None = None

    def __enter__(self) -> StopRequest:
        self._previous: dict[int, Any] = {}
        try:
            for signum in heeded(signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        except ValueError:  # not the main thread: signals are the caller's
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_IGN if signum == self.signum == HANGUP else handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
        elif signum != HANGUP:
            raise Interrupted(signum, "stopped at once; the last saved state is whole")
