"""Downloads into the cache: a bound on the waiting, nothing kept that was not verified, nothing half written."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mnistfast.errors import DataError, StorageError
from mnistfast.files.atomic import make_folder, write_atomic

_log = logging.getLogger(__name__)

PATIENCE_S = 18.0
"""Seconds that all mirrors together may keep us waiting in vain, name lookup included: it shall not take 20."""

MIN_RATE = 64 * 1024
"""Bytes that buy one more second of patience: a slow line gets through (MNIST: 3 minutes), a dripping one does not."""

MAX_BYTES = 1 << 26
"""The largest answer that is read unless the caller allows more, 64 MiB. MNIST's largest file has 47 MB, unpacked."""

ROOM = "set MNISTFAST_CACHE to a folder with room"
"""What helps where the cache cannot be written."""

_CHUNK = 16 * 1024


def fetch(
    names: Sequence[str],
    folder: Path,
    mirrors: Sequence[str],
    verify: Callable[[str, bytes, str], object],
    max_bytes: int | None = None,
) -> None:
    """Fetches files into a folder, each from the first mirror that serves it.

    A mirror that fails once is not asked again, so one dead mirror costs its share of `PATIENCE_S` once, not per file.

    Args:
        names: the file names.
        folder: where they go; created when missing. A name appears there only when its content is whole and verified.
        mirrors: base addresses, each ending in "/", the preferred one first.
        verify: called with the file name, its content and its address; raises `DataError` to refuse it.
        max_bytes: the longest answer that is read, `MAX_BYTES` if None; an answer is held in memory whole.

    Raises:
        StorageError: every mirror failed (the message has a reason for each), or the folder cannot be written.
    """
    make_folder(folder, fix=ROOM)
    missing = list(names)
    failures = []
    for mirror in mirrors:
        patience = Patience(PATIENCE_S / len(mirrors))
        try:
            while missing:
                url = mirror + missing[0]
                _log.info("downloading %s", url)
                content = _get(url, patience, max_bytes or MAX_BYTES)
                verify(missing[0], content, url)
                write_atomic(folder / missing[0], content, fix=ROOM)
                del missing[0]
            return
        except _Unavailable as error:
            failures.append(f"{urlsplit(mirror).netloc}: {error}")
        except DataError as error:
            failures.append(error.what)
        _log.info("mirror failed: %s", failures[-1])
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise StorageError(f"could not download {missing[0]}{more}", "; ".join(failures))


def cache_folder(name: str) -> Path:
    """Returns the folder that holds, or will hold, what is downloaded under `name`: a set, or weights."""
    root = os.environ.get("MNISTFAST_CACHE")
    if not root:
        import pooch  # 0.2 s that only a search of the platform's cache should pay

        root = pooch.os_cache("mnistfast")
    return Path(os.path.expanduser(root)) / name


class _Unavailable(Exception):
    """A mirror did not deliver; the text says why in a few words."""


class Patience:
    """How long one mirror may take: some seconds, and what its bytes buy, but never more than those seconds ahead.

    So silence ends the wait after `seconds` at the latest, whatever came before it.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.received = 0
        self._clock = clock
        self._deadline = clock() + seconds

    def add(self, received: int) -> None:
        """Counts bytes that have come in."""
        self.received += received
        self._deadline = min(self._deadline + received / MIN_RATE, self._clock() + self.seconds)

    def left(self) -> float:
        """Returns the seconds left."""
        return self._deadline - self._clock()


class _Sink(io.BytesIO):
    """Takes the bytes of one answer; stops the thread that writes them when nobody waits for them any more."""

    def __init__(self, patience: Patience, max_bytes: int) -> None:
        super().__init__()
        self._patience, self._max_bytes = patience, max_bytes
        self.abandoned = False

    def write(self, data: Any) -> int:
        if self.abandoned:
            raise _Unavailable("abandoned")
        if self.tell() + len(data) > self._max_bytes:
            raise _Unavailable(f"the answer is longer than {self._max_bytes:,} bytes")
        self._patience.add(len(data))
        return super().write(data)


def _get(url: str, patience: Patience, max_bytes: int) -> bytes:
    """Returns the content at `url`.

    The request runs in a thread of its own: the timeouts of a socket bound each address and each read, not the whole,
    and nothing bounds a name lookup.
    """
    import pooch  # 0.2 s that only a download should pay

    # The socket's own timeout is only for the thread that nobody waits for any more: the wait below ends first.
    download = pooch.HTTPDownloader(chunk_size=_CHUNK, timeout=2 * patience.seconds)
    sink = _Sink(patience, max_bytes)
    failures: list[Exception] = []
    finished = threading.Event()

    def work() -> None:
        try:
            download(url, sink, None)
        except Exception as error:
            failures.append(error)
        finally:
            finished.set()

    threading.Thread(target=work, name=f"fetch {url}", daemon=True).start()
    while not finished.wait(patience.left()):
        if patience.left() <= 0:  # else bytes came in meanwhile and bought more time
            sink.abandoned = True
            came = patience.received // 1024
            raise _Unavailable(f"timed out after {patience.seconds:g} s of waiting ({came:,} KiB came)")
    if failures:
        raise _Unavailable(_reason(failures[0])) from failures[0]
    return sink.getvalue()


def _reason(error: BaseException) -> str:
    """Returns a failed request in a few words: the status, or what the operating system said at the bottom of it."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code}"
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
