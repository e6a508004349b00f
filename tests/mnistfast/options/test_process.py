"""Failures become one line and an exit code."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mnistfast.errors import DataError, DeviceError, UsageError
from mnistfast.options import process


def raising(error):
    def command(argv):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            DataError("file x is short", "It ends early", "fetch it again"),
            3,
            "file x is short. It ends early. FIX: fetch it again",
        ),
        (MemoryError(), 6, "out of memory. FIX: a smaller --batch-size"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
            6,
            "out of memory. CUDA out of memory",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 6, "out of memory"),
        (OSError(errno.ENOSPC, "No space", "/x/a"), 7, "cannot write or read /x/a. no space left"),
        (PermissionError(errno.EACCES, "Denied", "/x/a"), 7, "cannot write or read /x/a. permission denied"),
        (OSError(errno.EROFS, "Read-only"), 7, "cannot write or read a file. the disk is read-only"),
        (
            OSError(errno.EIO, "Input/output error"),
            7,
            "cannot write or read a file. the disk does not answer as it should",
        ),
        (OSError(errno.EMFILE, "Too many", "/x/a"), 7, "cannot write or read /x/a. too many files are open"),
    ],
)
def test_known_failures(error, code, words, capsys):
    assert process.run(raising(error), []) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mnistfast: error: {words}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_bug_of_ours(capsys):
    assert process.run(raising(KeyError("x")), []) == 1
    error = capsys.readouterr().err
    log = Path(re.search(r"the traceback is in (\S+\.log)", error)[1])
    assert "Traceback" in log.read_text()
    log.unlink()
    assert "Traceback" not in error


def test_debug_shows_the_traceback(capsys):
    assert process.run(raising(DataError("x\x1b[2J")), ["--debug"]) == 3
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "\x1b" not in error
    assert process.run(raising(OSError("x\x1b[2J")), ["--debug"]) == 1
    error = capsys.readouterr().err
    assert "OSError: x\\x1b[2J\n" in error
    Path(re.search(r"the traceback is in (\S+\.log)", error)[1]).unlink()


def test_json(capsys):
    assert process.run(raising(DataError("x", "y", "z")), ["--json"]) == 3
    assert json.loads(capsys.readouterr().err) == {"code": 3, "kind": "data", "message": "x. y. FIX: z", "hint": "z"}


@pytest.fixture
def heeded_interrupts():
    """Python's own answer to SIGINT, also where a shell started the tests in the background and has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupts")
def test_interrupts(capsys):
    assert process.run(raising(KeyboardInterrupt()), []) == 130
    assert process.run(lambda argv: signal.raise_signal(signal.SIGTERM), []) == 143
    assert process.run(lambda argv: signal.raise_signal(signal.SIGINT), []) == 130
    assert capsys.readouterr().err == "mnistfast: stopped\n" * 3


@pytest.mark.parametrize(("before", "code"), [(signal.SIG_DFL, 129), (signal.SIG_IGN, 0)])
def test_hangup(before, code):
    """A second one does not break into the unwinding; under nohup none does anything."""
    unwound = []

    def command(argv):
        try:
            signal.raise_signal(signal.SIGHUP)
            return 0
        finally:
            signal.raise_signal(signal.SIGHUP)
            unwound.append(True)

    own = signal.signal(signal.SIGHUP, before)
    try:
        assert process.run(command, []) == code
        assert signal.getsignal(signal.SIGHUP) is before
    finally:
        signal.signal(signal.SIGHUP, own)
    assert unwound


def test_handlers_are_given_back():
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)]
    assert process.run(lambda argv: 0, []) == 0
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)] == before


def test_reader_that_goes_away():
    code = "import sys; from mnistfast.train import main; sys.exit(main(['--print-config']))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        found = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (found.returncode, found.stderr) == (141, "")


class FailedCompile(Exception):
    """Stands for what torch.compile raises where there is no compiler."""

    __module__ = "torch._inductor.exc"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            FailedCompile("No C++ compiler\nlong story"),
            "torch.compile failed. No C++ compiler. FIX: leave --compile out",
        ),
        (
            RuntimeError("f does not have a deterministic implementation"),
            "no deterministic algorithm. f does not have a deterministic implementation. "
            "FIX: leave --deterministic out",
        ),
    ],
)
def test_what_an_option_brings_is_no_bug(error, line, capsys):
    def command(argv):
        raise error

    assert process.run(command, []) == 6
    assert capsys.readouterr().err == f"mnistfast: error: {line}\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no"), 2, ""),
        (DeviceError("no memory"), 6, "mnistfast: error: rank 1: no memory\n"),
        (
            RuntimeError("[..] Connection closed by peer [127.0.0.1]"),
            6,
            "mnistfast: error: rank 1: another of the processes that train together has stopped. "
            "FIX: look for its message\n",
        ),
    ],
)
def test_of_many_processes_the_first_one_speaks(error, code, line, capsys, monkeypatch):
    def command(argv):
        raise error

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert process.run(command, []) == code
    assert capsys.readouterr().err == line


# A missing checkpoint is found out after torch was imported, which takes seconds.
@pytest.mark.parametrize(
    ("words", "code"), [("train --lr 0", 2), pytest.param("evaluate nothing", 4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_closed_streams(closed, words, code):
    ended = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m mnistfast.{words} {closed}"], capture_output=True, text=True
    )
    assert ended.returncode == code
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == ("2" not in closed)


@pytest.mark.slow
def test_names_that_the_terminal_cannot_show(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    line = [sys.executable, "-m", "mnistfast.train", "--data", str(tmp_path / "\u00e9"), "--threads", "1"]
    ended = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert ended.returncode == 3
    assert "\\xe9" in ended.stderr
