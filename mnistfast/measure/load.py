"""How busy the machine is with whatever runs on it."""

from __future__ import annotations

import os
from dataclasses import dataclass

_IDLE = 0.5  # what the services of a machine that is left alone, and our own start, come to at most


@dataclass(frozen=True)
class Load:
    """How busy the last minute was.

    Attributes:
        average: threads that ran or waited to run, this process' own among them, on average over the minute.
        cpus: how many this process may use.
    """

    average: float
    cpus: int

    def leaves_free(self, threads: int) -> bool:
        """Returns whether so many more threads find a CPU each; with more threads than CPUs, whether none is taken."""
        return self.average <= max(self.cpus - threads, 0) + _IDLE

    def __str__(self) -> str:
        return f"load {self.average:.1f} on {self.cpus} CPU{'s' * (self.cpus != 1)}"


def now() -> Load | None:
    """Returns the load, or None where the system does not tell it."""
    try:
        average = os.getloadavg()[0]
    except (AttributeError, OSError):  # AttributeError: there is none on Windows
        return None
    return Load(average, _cpus())


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
