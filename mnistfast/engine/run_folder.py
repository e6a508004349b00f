"""The folder of one run: who may write to it, what it says about itself, where its log is."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from mnistfast.engine.checkpoint import ADAPTER, BEST, ENV, LAST
from mnistfast.engine.files import make_folder, write_atomic
from mnistfast.engine.state import STATE
from mnistfast.engine.stop import Interrupted
from mnistfast.errors import CheckpointError, MnistfastError, StorageError, UsageError
from mnistfast.text import printable
from mnistfast.yaml_file import read_options

RUNS = Path("runs")
CONFIG, METRICS, LOG, STATUS = "config.yaml", "metrics.jsonl", "log.txt", "STATUS"
TEST, CURVES, CONFUSION, ERRORS, REPORT = "test.json", "curves.png", "confusion.png", "errors.png", "REPORT.md"
FINETUNE, DRAWS = "finetune.json", "draws.json"  # of fine-tuning alone
SEARCH, SEARCHED = "search.json", "best.yaml"  # of a search
FILES = (
    ADAPTER,
    FINETUNE,
    DRAWS,
    SEARCH,
    SEARCHED,
    CONFIG,
    ENV,
    METRICS,
    LOG,
    STATUS,
    BEST,
    LAST,
    STATE,
    TEST,
    CURVES,
    CONFUSION,
    ERRORS,
    REPORT,
)
LOCK = ".lock"


class RunFolder:
    """A run's folder, owned by this process until the end of a `with`.

    From `start` on STATUS says `running`, and after the `with` how it ended; before `start` nothing in the folder is
    changed. The ownership is a file lock, which the system lets go when the process ends in whatever way.
    """

    def __init__(self, path: Path) -> None:
        """Takes the folder `path`. Use `create` or `reopen`."""
        self.path, self._started = path, False
        self._lock = FileLock(path / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"another process is training in {path}", fix="wait for it or stop it, or take another --out"
            ) from None

    @classmethod
    def create(cls, out: str | None, model: str, seed: int, *, overwrite: bool = False) -> RunFolder:
        """Makes a new folder: `out`, or one named by date, model and seed under `runs`.

        Raises:
            UsageError: `out` is not empty and `overwrite` is not set, or another process works there.
            StorageError: the folder cannot be made.
        """
        if out is None:
            return cls(_fresh(make_folder(RUNS) / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{model}-s{seed}"))
        check_free(out, overwrite=overwrite)
        path = make_folder(Path(out))
        folder = cls(path)
        for name in FILES:  # the files of a run and no other: what else lies there is the user's
            (path / name).unlink(missing_ok=True)
        return folder

    @classmethod
    def reopen(cls, path: str) -> RunFolder:
        """Takes the folder of an earlier run.

        Raises:
            CheckpointError: `path` is not a run.
            UsageError: another process works there.
        """
        check(Path(path))
        return cls(Path(path))

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def start(self) -> None:
        """Begins to write. Raises StorageError."""
        self.set_status("running")
        self._started = True

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._started:
                return
            if error is None:
                self.set_status("finished")
            else:  # the disk may be what failed: then the error itself is the news
                with contextlib.suppress(OSError, StorageError):
                    self._note_failure(error)
        finally:
            self.release()

    def _note_failure(self, error: BaseException) -> None:
        if isinstance(error, (KeyboardInterrupt, Interrupted)):
            self.set_status("interrupted")
            return
        self.set_status(f"failed: {error if str(error) else type(error).__name__}")
        self.log(printable(f"failed: {error}"))
        if not isinstance(error, MnistfastError):
            self.log("".join(traceback.format_exception(error)))
            error.log_path = self / LOG  # type: ignore[attr-defined]  # for the line that the user gets

    def release(self) -> None:
        """Lets other processes have the folder."""
        self._lock.release()

    @property
    def status(self) -> str:
        """What STATUS says: running, finished, interrupted or failed: reason."""
        file = self / STATUS
        return file.read_text().strip() if file.is_file() else ""

    def set_status(self, status: str) -> None:
        """Writes STATUS. Raises StorageError."""
        write_atomic(self / STATUS, printable(status) + "\n")

    def log(self, text: str) -> None:
        """Adds `text` with the time to the log."""
        with open(self / LOG, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the records of metrics.jsonl, one an epoch; a last line cut short by a crash is left out."""
        records = []
        if (self / METRICS).is_file():
            for line in (self / METRICS).read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    records.append(json.loads(line))
        return [record for record in records if isinstance(record, dict) and isinstance(record.get("step"), int)]

    def add_metrics(self, record: dict[str, Any]) -> None:
        """Adds one record to metrics.jsonl."""
        with open(self / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())  # before the state that says that this epoch is done

    def cut_metrics(self, step: int) -> None:
        """Drops the records after `step`: what a crash left there will be written again."""
        kept = [json.dumps(record) + "\n" for record in self.metrics() if record["step"] <= step]
        write_atomic(self / METRICS, "".join(kept))


def check_free(out: str | None, *, overwrite: bool) -> None:
    """Raises UsageError when `out` is a folder that is not empty and `overwrite` is not set."""
    if out is None or overwrite or not Path(out).is_dir():
        return
    present = sorted({file.name for file in Path(out).iterdir()} - {LOCK})
    if present:
        why = f"It holds {', '.join(present[:5])}"
        resumable = f"--resume {out}, " if CONFIG in present else ""
        raise UsageError(f"{out} is not empty", why, f"{resumable}--overwrite or another --out")


def check(path: Path) -> None:
    """Raises CheckpointError when `path` is not the folder of a run."""
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"no run at {path}", f"There is no {path / CONFIG}", "--resume takes the folder of a run")


def data_of_run(path: Path) -> dict[str, Any]:
    """Returns `data`, `classes`, `resize` and `gray` of the run in the folder `path`, nothing when it is no run.

    Raises:
        CheckpointError: its configuration is damaged.
    """
    if not (path / CONFIG).is_file():
        return {}
    try:
        saved = read_options(path / CONFIG)
    except UsageError as error:
        raise CheckpointError(f"{path / CONFIG} is damaged", error.why) from error
    kinds = {"data": str, "classes": str, "resize": int, "gray": bool}
    found = {name: saved[name] for name in kinds if saved.get(name) is not None}
    for name, value in found.items():
        if not isinstance(value, kinds[name]):
            raise CheckpointError(f"{path / CONFIG} is damaged", f"Its {name} is {value!r:.100}")
    return found


def _fresh(wanted: Path) -> Path:
    """Makes and returns the folder `wanted`, or `wanted-2`, `wanted-3` ... where that is taken."""
    for number in itertools.count(1):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("count() ended")
