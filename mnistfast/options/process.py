"""What every command shares: one line for a failure and the exit code that belongs to it."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from mnistfast.errors import DeviceError, MnistfastError, StorageError, is_out_of_memory
from mnistfast.stop import HANGUP, Interrupted, heeded
from mnistfast.terminal import outliving
from mnistfast.text import show

DENIED = {errno.EACCES: "permission denied", errno.EPERM: "permission denied", errno.EROFS: "the disk is read-only"}
FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "the disk quota is used up"}
FAILING = {
    errno.EIO: "the disk does not answer as it should",
    errno.ESTALE: "the network folder has changed meanwhile",
    errno.EFBIG: "the system allows no file of this size",
    errno.ENAMETOOLONG: "its name is too long",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
}
STORAGE = DENIED | FULL | FAILING
LOST = ("Connection closed by peer", "Connection reset by peer")  # gloo's words when a process has ended


class _Warnings(logging.Handler):
    """Shows what the library warns of as the commands show their own warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        show(f"mnistfast: warning: {record.getMessage()}", sys.stderr)


logging.getLogger("mnistfast").addHandler(_Warnings(logging.WARNING))


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Runs `command` on `argv` (None: the process' own) and returns its exit code, having reported any failure."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    debug, as_json = "--debug" in argv, "--json" in argv
    previous = _handle_signals()
    try:
        code = command(argv)
        sys.stdout.flush()
        return code
    except SystemExit as ending:  # --help and --version
        return ending.code if isinstance(ending.code, int) else 0
    except (KeyboardInterrupt, Interrupted) as stop:
        signum = stop.signum if isinstance(stop, Interrupted) else signal.SIGINT
        return _fail(128 + signum, "interrupted", str(stop) or "stopped", as_json)
    except BrokenPipeError:  # `mnistfast ... | head`: nobody reads on
        # Or the interpreter's own last flush would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except Exception as error:
        if debug:
            for line in traceback.format_exc().splitlines():
                show(line, sys.stderr)
        known = translate(error)
        if known:
            return _fail(known.code, known.kind, str(known), as_json, known.fix)
        log = getattr(error, "log_path", None) or _traceback_file(error)
        said = " ".join(str(error).split())
        text = f"{type(error).__name__}: {said}. This is a bug of ours; the traceback is in {log}"
        return _fail(1, "internal", text, as_json, f"report it with {log}")
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _open_streams() -> None:
    """Gives the process the streams that its parent closed, and lets them show any name and outlive their terminal."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # as long as the process
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            with contextlib.suppress(io.UnsupportedOperation):  # a stream in memory, which a caller of ours put there
                if os.isatty(stream.fileno()):
                    setattr(sys, name, outliving(stream))


def translate(error: Exception) -> MnistfastError | None:
    """Returns `error` as a failure that the user can act on, or None for a bug of ours."""
    if isinstance(error, MnistfastError):
        return error
    text = str(error)
    if is_out_of_memory(error):
        return DeviceError("out of memory", text.splitlines()[0] if text else "", "a smaller --batch-size")
    if _is_compilers(error):
        return DeviceError("torch.compile failed", text.splitlines()[0] if text else "", "leave --compile out")
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in text:
        return DeviceError("no deterministic algorithm", text.splitlines()[0], "leave --deterministic out")
    if isinstance(error, RuntimeError) and "WORLD_SIZE" in os.environ and any(sign in text for sign in LOST):
        return DeviceError("another of the processes that train together has stopped", fix="look for its message")
    if isinstance(error, OSError) and error.errno in STORAGE:
        where = error.filename or "a file"
        return StorageError(f"cannot write or read {where}", STORAGE[error.errno], "another --out folder")
    return None


def _is_compilers(error: Exception) -> bool:
    """Whether it is torch.compile's own."""
    if not type(error).__module__.startswith("torch."):  # torch need not be imported to know that
        return False
    from convpool.torch_private import is_compilers

    return is_compilers(error)


def _fail(code: int, kind: str, message: str, as_json: bool, hint: str = "") -> int:
    rank = os.environ.get("RANK", "0")
    if rank != "0" and kind not in ("device", "internal"):  # the same in all processes: the first one says it
        return code
    if rank != "0":
        message = f"rank {rank}: {message}"
    if as_json:
        line = json.dumps({"code": code, "kind": kind, "message": message, "hint": hint})
    else:
        line = f"mnistfast: {'' if kind == 'interrupted' else 'error: '}{message}"
    show(line, sys.stderr)
    return code


def _traceback_file(error: Exception) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="mnistfast-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return file.name


def _handle_signals() -> dict[int, Any]:
    """Makes SIGTERM and SIGHUP unwind the stack, so that a run folder notes why it ended. Returns the old handlers."""
    previous: dict[int, Any] = {}

    def terminate(signum: int, frame: FrameType | None) -> None:
        if signum == HANGUP:
            signal.signal(signum, signal.SIG_IGN)  # another one would break into the unwinding
        raise Interrupted(signum)

    with contextlib.suppress(ValueError):  # not the main thread: signals are the caller's
        for signum in heeded(signal.SIGTERM):
            previous[signum] = signal.signal(signum, terminate)
    return previous
