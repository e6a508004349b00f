"""What a call comes to when it raises, dies or hangs, and that the next one is none the worse."""

import os
import time

from convpool.testing.isolated import Failure, Isolated


def add(a: int, b: int) -> int:
    return a + b


def test_a_failed_call_is_told_and_the_next_is_answered() -> None:
    with Isolated() as isolated:
        first = isolated.call(os.getpid, seconds=60)
        assert isolated.call(divmod, 1, 0, seconds=60) == Failure(
            "raised", "ZeroDivisionError: integer division or modulo by zero"
        )
        assert isolated.call(os.getpid, seconds=60) == first != os.getpid()
        assert isolated.call(os.abort, seconds=60) == Failure("crashed", "ended by SIGABRT")
        assert isolated.call(os._exit, 3, seconds=60) == Failure("crashed", "ended with status 3")
        assert isolated.call(add, 1, 2, seconds=60) == 3
        assert isolated.call(time.sleep, 60, seconds=0.1) == Failure("hung", "no answer within 0.1 s")
        second = isolated.call(os.getpid, seconds=60)
        assert second != first
    assert not _runs(second)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
