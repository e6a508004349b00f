"""Texts that are short, or they are not what they should be."""

from __future__ import annotations

from pathlib import Path

from mnistfast.files.regular import open_regular

SMALL = 1 << 20  # bytes: what a file of settings may have, a thousand times what ours have


def read_small(path: Path) -> str:
    """Returns the text of the file at `path`.

    Raises:
        OSError: it is missing, no regular file, or cannot be read.
        ValueError: it is no text, or has more than `SMALL` bytes.
    """
    with open_regular(path) as file:
        content = file.read(SMALL + 1)
    if len(content) > SMALL:
        raise ValueError(f"It has more than {SMALL:,} bytes")
    return content.decode()
