"""What decoders raise on a damaged file, a dozen types, made into one failure that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mnistfast.errors import MnistfastError, is_out_of_memory

_SHOWN = 200  # characters of a file's content in a message


@contextmanager
def decoding_as(kind: type[MnistfastError], what: str, fix: str, why: str = "") -> Iterator[None]:
    """Raises an error of our own in the place of what is raised inside; ours, and that memory ran out, pass.

    So does what no file can cause, a name that is not there.

    Args:
        kind: the class of the error.
        what: what is damaged, naming the file.
        fix: what helps.
        why: the reason to give, in the place of the first line of the decoder's own.
    """
    try:
        yield
    except (MnistfastError, MemoryError, NameError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise kind(what, why or reason(error), fix) from error


def reason(error: Exception) -> str:
    """Returns the start of the first line of what a decoder said, or what it raised where it said nothing."""
    text = str(error).strip()
    return short(text.splitlines()[0]) if text else type(error).__name__


def short(text: str) -> str:
    """Returns `text`, which a file's content is part of, no longer than a message may be."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
