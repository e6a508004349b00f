"""What tells whether a file of a run is as it was written: its format's version, and a digest within it.

The digest is the SHA-256 of the whole file with zeros in the digest's own place, so that one flipped bit anywhere is
noticed. It detects damage, not forgery: who changes a file on purpose can write the digest that fits.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import IO, Any

from mnistfast.errors import CheckpointError
from mnistfast.files.decoding import decoding_as
from mnistfast.files.small import read_small

FORMAT_VERSION = 2
"""Of checkpoints and of the training state. 2 brought the digest, and in 1 there is none."""

PREFIX = b"sha256:"
BLANK = PREFIX + b"0" * 64
"""What stands in the digest's place before it is known."""

AGAIN = "another checkpoint of the run, or train again"
_CHUNK = 1 << 20
_log = logging.getLogger(__name__)


def seal(file: memoryview, at: int) -> None:
    """Puts the digest of `file` into it, at the offset `at`, where it has `BLANK`; a large state is not copied."""
    file[at : at + len(BLANK)] = PREFIX + hashlib.sha256(file).hexdigest().encode()


def check_digest(path: Path, at: int) -> None:
    """Raises CheckpointError when the file at `path` does not fit the digest that it has at the offset `at`."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        _add(digest, file, at)
        found = file.read(len(BLANK))
        digest.update(BLANK)
        _add(digest, file, None)
    if found != PREFIX + digest.hexdigest().encode():
        raise CheckpointError(f"{path} is damaged", "Its content does not fit its digest", AGAIN)


def check_version(found: object, path: Path, *, has_digest: bool) -> None:
    """Accepts the version of the format that the file at `path` names; one from before digests is accepted with a word.

    Raises:
        CheckpointError: no version of ours, a newer one, or one whose files have a digest while this one has none.
    """
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise CheckpointError(f"{path} is no checkpoint of mnistfast", f"Its format's version is {found!r:.40}")
    if found > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {found}, this version reads up to {FORMAT_VERSION}", fix="update mnistfast"
        )
    if found > 1 and not has_digest:
        raise CheckpointError(f"{path} is damaged", "It has lost its digest", AGAIN)
    if not has_digest:
        _say_that_damage_would_not_show(path)


def decoding(path: Path, why: str = "", fix: str = AGAIN) -> AbstractContextManager[None]:
    """Turns what decoders and torch raise on the content of the file at `path` into a CheckpointError.

    Args:
        path: the file.
        why: the reason to give, in the place of the decoder's own first line.
        fix: what helps.
    """
    return decoding_as(CheckpointError, f"{path} is damaged", fix, why)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in the file at `path`. Raises CheckpointError: missing, or not what a run writes."""
    try:
        found = json.loads(read_small(path))
        if isinstance(found, dict):
            return found
        why = "It holds no object"
    except (OSError, ValueError, RecursionError) as error:
        why = str(error)
    raise CheckpointError(f"{path} is missing or damaged", why, "train anew with another --out")


def _add(digest: hashlib._Hash, file: IO[bytes], size: int | None) -> None:
    """Adds the next `size` bytes of `file` to `digest`, or all that are left."""
    while size != 0 and (chunk := file.read(_CHUNK if size is None else min(_CHUNK, size))):
        digest.update(chunk)
        size = None if size is None else size - len(chunk)


@cache  # once a file
def _say_that_damage_would_not_show(path: Path) -> None:
    _log.warning("%s was written before files had a digest: damage in it would not be noticed", path)
