"""Running the steps in children: each step in its time box, one child for as long as nothing goes wrong.

A child that hangs, aborts or loses its GPU is replaced: the row that it was at is named in the result, and the next one
is taken by a new child. Killed is its whole process group, for a child may have started profilers or compilers.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu_steps.result import Result
from benchmarks.gpu_steps.table import Step

ROOT = Path(__file__).parents[2]
GRACE = 5.0  # seconds after its box in which a step may finish its row
START = 60.0  # ... and that a child may take to import torch and find the GPU
MOST_DEATHS = 4  # of children within a step that is then given up


@dataclass(frozen=True)
class Setting:
    """What every child is told.

    Attributes:
        device: "cuda", or "cpu" in a rehearsal.
        data: folder of MNIST's IDX files, or "".
        until: by time.monotonic(), when everything must be over.
    """

    device: str
    data: str
    until: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()


@contextmanager
def started(
    module: str, argument: str, log: Path, pass_fds: Sequence[int] = (), **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs a module of the sources beside this one, its output appended to `log`; killed at the end.

    It has a process group of its own, and its standard input is closed when this process is gone, whatever ended it.
    """
    paths = [str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | environment
    command = [sys.executable, "-m", module, argument]
    with log.open("ab") as output:
        process = subprocess.Popen(
            *(command,),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=environment,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class Run:
    """One pass through the steps, with as many children as it takes."""

    def __init__(
        self, steps: Sequence[Step], setting: Setting, result: Result, log: Path, say: Callable[[str], object] = print
    ) -> None:
        """`say` is told of each step's end and of each death; `log` gets what children print."""
        self._steps, self._setting, self._result, self._log, self._say = list(steps), setting, result, log, say
        self._row, self._key = 0, None  # the next row of the first step left; what it is about, once it has begun
        self._deaths = 0  # within that step
        self._began: float | None = None  # that step; by time.monotonic(), as all times here
        self._deadline = 0.0  # of the step
        self._row_deadline = 0.0
        self._rows = 0

    def run(self) -> None:
        """Run all steps, whatever they do; those for which no time is left are named as such."""
        while self._steps and self._setting.left > 0:
            cause = self._one_child()
            if not self._steps:
                break
            self._deaths += 1
            self._say(f"   {self._steps[0].name}: {cause}: {json.dumps(self._key)}")
            if self._key is not None:
                self._result.add(self._steps[0].name, {**self._key, "failed": cause, "log": _tail(self._log)})
                self._row, self._key = self._row + 1, None
            if self._deaths >= MOST_DEATHS or (self._began and time.monotonic() > self._deadline):
                self._end(cause)
        for step in self._steps:
            self._result.ended(step.name, "not reached", 0)
            self._say(f"   {step.name}: not reached")

    def _one_child(self) -> str:
        """Let one child go as far as it gets, and say how it ended."""
        read_end, write_end = os.pipe()
        order = {
            "steps": [asdict(step) for step in self._steps],
            "setting": asdict(self._setting),
            "row": self._row,
            "deadline": self._deadline if self._began else None,
            "fd": write_end,
        }
        self._row_deadline = time.monotonic() + START
        with (
            os.fdopen(read_end, "rb", buffering=0) as pipe,
            started("benchmarks.gpu_steps.child", json.dumps(order), self._log, [write_end]) as child,
        ):
            os.close(write_end)
            for message in _messages(pipe, self._patience):
                if message is None:
                    return "no answer in time, killed"
                self._hear(**message)
            with suppress(subprocess.TimeoutExpired):
                child.wait(5)
            return _cause(child.returncode)

    def _patience(self) -> float:
        """By when the child must have said something."""
        step = self._deadline + GRACE if self._began else self._setting.until
        return min(self._row_deadline, step, self._setting.until)

    def _hear(self, said: str, **more: Any) -> None:
        """What a child says: that a step or row begins, what a row found, that a step ends."""
        step, now = self._steps[0], time.monotonic()
        if said == "step" and self._began is None:
            self._began, self._deadline = now, more["deadline"]
            self._say(f"== {step.name}, {self._deadline - now:.0f} s at most, {self._setting.left:.0f} s left")
        elif said == "row":
            self._key, self._row_deadline = more["key"], now + step.row_seconds
        elif said == "found":
            self._result.add(step.name, more["row"])
            self._row, self._key, self._rows = self._row + 1, None, self._rows + 1
            self._row_deadline = now + step.row_seconds
        elif said == "end":
            self._end(more["how"])

    def _end(self, how: str) -> None:
        seconds = time.monotonic() - (self._began or time.monotonic())
        self._result.ended(self._steps[0].name, how, seconds)
        self._say(f"   {self._steps[0].name}: {how}, {self._rows} rows in {seconds:.1f} s")
        self._steps.pop(0)
        self._row, self._key, self._deaths, self._began, self._rows = 0, None, 0, None, 0
        self._row_deadline = time.monotonic() + START


def _messages(pipe: IO[bytes], patience: Callable[[], float]) -> Iterator[dict[str, Any] | None]:
    """A child's messages, a JSON object a line, until it ends; None where it says nothing for too long."""
    kept = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, patience() - time.monotonic()))
        if not ready:
            yield None
            return
        read = pipe.read(1 << 16)
        if not read:
            return
        *lines, kept = (kept + read).split(b"\n")
        yield from map(json.loads, lines)


def _cause(exit_code: int | None) -> str:
    if exit_code is None:
        return "closed its pipe and went on, killed"
    return f"ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with status {exit_code}"


def _tail(log: Path, bytes_: int = 1500) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - bytes_))
        return stream.read().decode(errors="replace")
