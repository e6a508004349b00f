"""Functions called in a process of its own, so that a crash, a hang or a lost GPU ends one call and not its caller."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Literal, TypeVar

import torch

Answer = TypeVar("Answer")

# A fork server has torch in memory, so that a child is there at once, and has run nothing that would harm one.
CONTEXT = multiprocessing.get_context("forkserver") if sys.platform == "linux" else multiprocessing.get_context("spawn")
CONTEXT.set_forkserver_preload(["convpool"])


@dataclass(frozen=True)
class Failure:
    """A call without an answer: the function raised, its process died, or it took too long."""

    kind: Literal["raised", "crashed", "hung"]
    detail: str


class Isolated:
    """A process that runs one call at a time, replaced where a call has spoilt it; ends with the `with` block.

    Functions, arguments and answers are pickled.
    """

    def __enter__(self) -> "Isolated":
        self._process: BaseProcess | None = None
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def call(self, function: Callable[..., Answer], *arguments: object, seconds: float) -> Answer | Failure:
        """The function's answer, if it gives one within so many seconds."""
        if self._process is None or not self._process.is_alive():
            self._start()
        try:
            self._pipe.send((function, arguments))
            if not self._pipe.poll(seconds):
                self._end()
                return Failure("hung", f"no answer within {seconds:g} s")
            answer, usable = self._pipe.recv()
        except (EOFError, ConnectionError):
            return Failure("crashed", _cause(self._end(patience=10)))
        if not usable:
            self._end()
        return answer

    def _start(self) -> None:
        self._end()
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # or the pipe would stay open when the process dies

    def _end(self, patience: float = 0) -> int | None:
        """The exit code of the process, which is killed if it has not ended by itself in so many seconds."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        process.join(patience)
        process.kill()
        process.join(10)
        self._pipe.close()
        return process.exitcode


def end_with_caller() -> None:
    """In a child: end when the process that started it does, even if that was killed; Ctrl-C is for that one alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_and_exit, daemon=True).start()


def _wait_and_exit() -> None:
    caller = multiprocessing.parent_process()
    if caller is not None:
        caller.join()
        os._exit(1)


def _serve(pipe: Connection) -> None:
    end_with_caller()
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:  # the caller was killed
            return
        try:
            answer, usable = function(*arguments), True
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            answer, usable = Failure("raised", f"{type(error).__name__}: {first_line}"), not gpu_is_lost()
        pipe.send((answer, usable))


def gpu_is_lost() -> bool:
    """Whether CUDA refuses this process: after an illegal access every further call fails."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"ended by {signal.Signals(-exit_code).name}"
    return f"ended with status {exit_code}"
