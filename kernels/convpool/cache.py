"""Files of JSON in the user's cache folder: written whole or not at all, by one process at a time."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20  # of a file that is read: a table of all shapes that anyone trains has less than one
MOST_SECONDS = 10  # to wait for another process that writes


def folder() -> Path | None:
    """Where the files lie; None where CONVPOOL_CACHE is "off", or where this user has no such place."""
    named = os.environ.get("CONVPOOL_CACHE")
    if named == "off":
        return None
    if named:
        return Path(named)
    variable, within_home = (
        ("LOCALAPPDATA", "AppData/Local") if sys.platform == "win32" else ("XDG_CACHE_HOME", ".cache")
    )
    try:
        return Path(os.environ.get(variable) or Path.home() / within_home) / "convpool"
    except RuntimeError:  # no home
        return None


def read(path: Path) -> Any:
    """What the file says.

    Raises:
        OSError: it cannot be read; FileNotFoundError: there is none.
        ValueError: it is no JSON, or too large.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested without end") from None


def update(path: Path, content: Callable[[], Any]) -> None:
    """Write what `content` returns, which may read the file: no other process writes meanwhile.

    Raises:
        OSError: it cannot be written, or another process does not stop writing (TimeoutError).
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=MOST_SECONDS):
        text = json.dumps(content(), indent=1)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
