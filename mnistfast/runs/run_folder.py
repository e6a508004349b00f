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

from mnistfast.errors import CheckpointError, MnistfastError, StorageError, UsageError
from mnistfast.files.atomic import Content, is_temporary, make_folder, storing, write_atomic
from mnistfast.files.folder import Folder
from mnistfast.files.yaml_file import read_options
from mnistfast.runs.checkpoint import ADAPTER, BEST, ENV, LAST
from mnistfast.runs.state import STATE
from mnistfast.stop import Interrupted
from mnistfast.text import printable

RUNS = Path("runs")
CONFIG, METRICS, LOG, STATUS = "config.yaml", "metrics.jsonl", "log.txt", "STATUS"
TEST, CURVES, CONFUSION, ERRORS, REPORT = "test.json", "curves.png", "confusion.png", "errors.png", "REPORT.md"
FINETUNE, DRAWS = "finetune.json", "draws.json"  # of fine-tuning alone
SEARCH, SEARCHED = "search.json", "best.yaml"  # of a search
# All that a run may leave. The first makes a folder a run, the next three let it answer and go on: an old run loses
# them in this order, so that a process killed meanwhile leaves nothing that looks like a whole run.
FILES = (
    CONFIG,
    BEST,
    LAST,
    STATE,
    ENV,
    METRICS,
    TEST,
    REPORT,
    CURVES,
    CONFUSION,
    ERRORS,
    ADAPTER,
    FINETUNE,
    DRAWS,
    SEARCH,
    SEARCHED,
    LOG,
    STATUS,
)
LOCK = ".lock"


class RunFolder:
    """A run's folder, owned by this process until the end of a `with`.

    From `start` on STATUS says `running`, and after the `with` how it ended; before `start` nothing in the folder is
    changed. The ownership is a file lock, which the system lets go when the process ends in whatever way: STATUS says
    `running` and nobody has the lock where a process was killed.

    Somebody may delete or replace a folder whose run is on. Everything is written through the folder that was opened
    at the start, so nothing lands in another one, and only while the lock file in it is the one that this process
    locked. (Where that file alone is replaced between the look at it and the end of one write, it still lands.)

    Attributes:
        path: where the folder is.
    """

    def __init__(self, path: Path, *, clear: bool = False) -> None:
        """Takes the folder `path`; with `clear`, `start` deletes an earlier run from it. Use `create` or `reopen`.

        Raises:
            UsageError: another process works there.
            StorageError: it cannot be written to.
        """
        self.path, self._clear, self._started = path, clear, False
        with contextlib.ExitStack() as undo:
            with storing(path / LOCK):
                self._folder = undo.enter_context(Folder(path))
                # Ours where it is at its path after the locking too: then this is the file that was locked.
                self._held = self._folder.open(LOCK, os.O_RDWR | os.O_CREAT)
                undo.callback(os.close, self._held)
            lock = FileLock(path / LOCK)
            undo.callback(lock.release)
            with storing(path / LOCK), contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
            if not (lock.is_locked and self._is_ours() and self._folder.is_at_its_path()):
                raise UsageError(
                    f"another process is training in {path}", fix="wait for it or stop it, or take another --out"
                )
            self._undo = undo.pop_all()

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
        folder = cls(make_folder(Path(out)), clear=True)
        try:
            check_free(out, overwrite=overwrite)  # again: another may have come and gone before the folder was ours
        except UsageError:
            folder.release()
            raise
        return folder

    @classmethod
    def reopen(cls, path: str) -> RunFolder:
        """Takes the folder of an earlier run.

        Raises:
            CheckpointError: `path` is not a run.
            UsageError: another process works there.
            StorageError: it cannot be written to.
        """
        check(Path(path))
        return cls(Path(path))

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def start(self) -> None:
        """Begins to write, and deletes what is left of an earlier run. Raises StorageError."""
        self.set_status("running")
        self._started = True
        with storing(self.path):
            # The files of a run and no other: what else lies there is the user's.
            old = [name for name in FILES if name != STATUS] if self._clear else []
            for name in [*old, *filter(is_temporary, self._folder.names())]:
                self._folder.remove(name)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._started:
                self._conclude(error)
        finally:
            self.release()

    def _conclude(self, error: BaseException | None) -> None:
        if error is None:
            self.set_status("finished")
            return
        # The disk may be what failed: then the error itself is the news.
        with contextlib.suppress(OSError, StorageError):
            self._note_failure(error)
        if isinstance(error, (OSError, CheckpointError)):  # a file may be missing because the folder is
            self._check()

    def _note_failure(self, error: BaseException) -> None:
        if isinstance(error, (KeyboardInterrupt, Interrupted)):
            self.set_status("interrupted")
            return
        self.set_status(f"failed: {error if str(error) else type(error).__name__}")
        self._add(LOG, _stamped(printable(f"failed: {error}")))
        if not isinstance(error, MnistfastError):
            self._add(LOG, _stamped("".join(traceback.format_exception(error))))
            error.log_path = self / LOG  # type: ignore[attr-defined]  # for the line that the user gets

    def release(self) -> None:
        """Lets other processes have the folder."""
        self._started = False
        self._undo.close()

    def write(self, path: Path, content: Content) -> None:
        """Writes the file `path` of this folder, as `write_atomic`. Raises StorageError, also where it is not ours."""
        self._check()
        write_atomic(path, content, self._folder)

    def _check(self) -> None:
        """Raises StorageError where the path leads to another folder, or none, or the lock is not ours any more."""
        if not (self._folder.is_at_its_path() and self._is_ours()):
            raise self._lost()

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(self._folder.stat(LOCK), os.fstat(self._held))
        except FileNotFoundError:
            return False

    def _lost(self) -> StorageError:
        why = "It was deleted or replaced while the run was on; nothing more was written there"
        return StorageError(f"{self.path} is no longer the folder of this run", why, "train again, with another --out")

    @property
    def status(self) -> str:
        """What STATUS says: running, finished, interrupted or failed: reason."""
        file = self / STATUS
        return file.read_text().strip() if file.is_file() else ""

    def set_status(self, status: str) -> None:
        """Writes STATUS. Raises StorageError."""
        if not self._is_ours():
            raise self._lost()
        content = f"{printable(status)}\n"
        try:
            write_atomic(self / STATUS, content, self._folder)
        except StorageError:  # no room for a second file: the block that the first one has takes these few bytes
            with storing(self / STATUS):
                self._folder.put(STATUS, content.encode(errors="backslashreplace"), 0)

    def log(self, text: str) -> None:
        """Adds `text`, one line, with the time to the log, from `start` to the end of the `with`.

        A disk that does not take it is no reason to stop: what has to be saved will tell.

        Raises:
            StorageError: the folder is not ours any more.
        """
        if self._started:
            self._check()
            with contextlib.suppress(StorageError):
                self._add(LOG, _stamped(printable(text)))

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the records of metrics.jsonl, one an epoch; a last line cut short by a crash is left out."""
        records = []
        if (self / METRICS).is_file():
            for line in (self / METRICS).read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    records.append(json.loads(line))
        return [record for record in records if isinstance(record, dict) and isinstance(record.get("step"), int)]

    def add_metrics(self, record: dict[str, Any]) -> None:
        """Adds one record to metrics.jsonl, on the disk before the state that says that its epoch is done.

        Raises:
            StorageError: no space, or the folder is not ours any more.
        """
        self._check()
        self._add(METRICS, json.dumps(record) + "\n", durable=True)

    def _add(self, name: str, text: str, *, durable: bool = False) -> None:
        with storing(self / name):
            content = text.encode(errors="backslashreplace")
            self._folder.put(name, content, os.O_APPEND | os.O_CREAT, durable=durable)

    def cut_metrics(self, step: int) -> None:
        """Drops the records after `step`: what a crash left there will be written again."""
        kept = [json.dumps(record) + "\n" for record in self.metrics() if record["step"] <= step]
        self.write(self / METRICS, "".join(kept))


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


def _stamped(text: str) -> str:
    """Returns a line of the log."""
    return f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {text}\n"


def _fresh(wanted: Path) -> Path:
    """Makes and returns the folder `wanted`, or `wanted-2`, `wanted-3` ... where that is taken."""
    for number in itertools.count(1):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("count() ended")
