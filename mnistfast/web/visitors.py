"""Who is being served: bounded in number, in time and in memory, so that no client keeps the others out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus

Refusal = tuple[HTTPStatus, str]
BUSY: Refusal = HTTPStatus.SERVICE_UNAVAILABLE, "too many ask at once: try again"
LATE: Refusal = HTTPStatus.REQUEST_TIMEOUT, "the request took too long to come"


class Phase(Enum):
    """What a connection is at."""

    READING = auto()  # waits for its client's request
    WORKING = auto()  # its request is whole
    ANSWERING = auto()  # waits for its client to take the answer
    ENDED = auto()  # its thread is about to find out


@dataclass
class _Visit:
    since: float
    phase: Phase = Phase.READING
    size: int = 0
    refusal: Refusal | None = None


class Visitors:
    """The connections of a server.

    One that waits for its client may be ended: when its time is over, and, whichever has waited longest, when another
    needs its place or its memory. A newcomer is therefore let in whatever the others do, and has to be faster than as
    many newcomers as there are places.

    Attributes:
        most: connections at once.
        workers: how many of them may be worked on; fewer than `most`, so that there is always one to end.
        memory: bytes that all their requests may take.
        seconds: how long a client may take for its request and its answer together.
    """

    def __init__(
        self, most: int, workers: int, memory: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.most, self.workers, self.memory, self.seconds = most, workers, memory, seconds
        self._lock = threading.Lock()
        self._visits: dict[socket.socket, _Visit] = {}  # who has waited longest for its client first

    def __len__(self) -> int:
        return len(self._visits)

    def admit(self, connection: socket.socket) -> bool:
        """Lets a connection in; False where even those that were ended have not left yet."""
        with self._lock:
            if len(self._visits) >= 2 * self.most:
                return False
            if sum(visit.phase is not Phase.ENDED for visit in self._visits.values()) >= self.most:
                self._end(next(self._waiting()), BUSY)
            self._visits[connection] = _Visit(self._clock())
            return True

    def hold(self, connection: socket.socket, size: int) -> bool:
        """Sets `size` bytes aside for the connection's request; False where they are not to be had."""
        with self._lock:
            others = (each for each in self._waiting() if each is not connection and self._visits[each].size)
            while sum(visit.size for visit in self._visits.values()) + size > self.memory:
                if (longest := next(others, None)) is None:
                    return False
                self._end(longest, BUSY)
            self._visits[connection].size = size
            return True

    def work(self, connection: socket.socket) -> bool:
        """Notes that the connection's request is whole; False where it was ended, or too many are worked on."""
        with self._lock:
            visit = self._visits[connection]
            working = sum(other.phase is Phase.WORKING for other in self._visits.values())
            if visit.phase is Phase.ENDED or working >= self.workers:
                return False
            visit.phase = Phase.WORKING
            return True

    def answer(self, connection: socket.socket) -> None:
        """Notes that the connection gets its answer now, if only the one that it was ended."""
        with self._lock:
            visit = self._visits[connection] = self._visits.pop(connection)
            visit.phase, visit.size = Phase.ANSWERING, 0

    def refusal(self, connection: socket.socket) -> Refusal | None:
        """Returns why the connection was ended, if it was."""
        return self._visits[connection].refusal

    def leave(self, connection: socket.socket) -> None:
        """Forgets a connection that is about to be closed."""
        with self._lock:
            self._visits.pop(connection, None)

    def end_late(self) -> None:
        """Ends the connections whose time is over."""
        latest = self._clock() - self.seconds
        with self._lock:
            for connection in list(self._waiting()):
                if self._visits[connection].since < latest:
                    self._end(connection, LATE)

    def _waiting(self) -> Iterator[socket.socket]:
        """Yields the connections that wait for their clients, the longest first."""
        waits = (Phase.READING, Phase.ANSWERING)
        return (connection for connection, visit in self._visits.items() if visit.phase in waits)

    def _end(self, connection: socket.socket, why: Refusal) -> None:
        """Wakes the connection's thread: it reads or writes no further. Who was not answered yet can still be told."""
        visit = self._visits[connection]
        how = socket.SHUT_RD if visit.phase is Phase.READING else socket.SHUT_RDWR
        visit.phase, visit.size, visit.refusal = Phase.ENDED, 0, why
        with suppress(OSError):  # the client has gone already
            connection.shutdown(how)
