"""What a program says to a terminal that is gone."""

import io
import os
import pty

import pytest

from mnistfast.terminal import outliving


def test_a_terminal_that_is_closed_takes_everything_in_silence():
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", encoding="utf-8", errors="backslashreplace") as stream:
        terminal = outliving(stream)
        print("before", file=terminal)
        assert os.read(master, 100) == b"before\r\n"
        os.close(master)
        for _ in range(1000):
            print("after", file=terminal, flush=True)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(slave, b"x")
        assert (terminal.encoding, terminal.errors) == (stream.encoding, "backslashreplace")


def test_other_failures_are_told():
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        terminal = outliving(stream)
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            print("x", file=terminal, flush=True)
        with pytest.raises(BrokenPipeError):
            terminal.close()
    assert isinstance(terminal, io.TextIOWrapper)
