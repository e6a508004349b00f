"""Values of options: a text of the command line, or what YAML made of a line of a file, in the type of the field."""

from __future__ import annotations

from contextlib import suppress
from types import NoneType
from typing import Any, get_args, get_origin

from mnistfast.errors import UsageError

LARGEST = 2**63  # whole numbers are below: the seed's bound, and torch's
NOTHING = ("null", "Null", "NULL", "~")  # YAML's words for None
TRUTHS = {"true": True, "false": False}
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
PAIR = "two numbers such as [0.9, 0.999]"


def converted(flag: str, kind: Any, value: Any) -> Any:
    """Returns `value` as one of the type `kind`.

    Args:
        flag: the option, for messages.
        kind: int, float, bool, str or a tuple of two floats; or one of these or None.
        value: a text, which may stand for any of them (1e-3 is a text to YAML too), or what YAML made of one.

    Raises:
        UsageError: it is of another type, or too large a number.
    """
    optional = NoneType in get_args(kind)
    plain = next(part for part in get_args(kind) if part is not NoneType) if optional else kind
    if optional and (value is None or value in NOTHING):
        return None
    read = _read(get_origin(plain) or plain, value)
    try:
        found = _as(plain, read)
    except OverflowError as error:  # a whole number where a float is wanted
        raise UsageError("an option's number is too large", str(error)) from error
    if found is None:
        raise UsageError(f"{flag} is {read}", f"It must be {WORDS.get(plain, PAIR)}")
    if isinstance(found, int) and abs(found) >= LARGEST:
        raise UsageError(f"{flag} is too large a number", f"It must be below {LARGEST:,}")
    return found


def _read(kind: type, value: Any) -> Any:
    """Returns what `value` stands for where a `kind` is wanted; what stands for nothing else stays as it is."""
    if kind is bool:
        return TRUTHS.get(value, value) if isinstance(value, str) else value
    if kind is tuple:
        parts = _parts(value) if isinstance(value, str) else value
        return [_read(float, part) for part in parts] if isinstance(parts, (list, tuple)) else parts
    if kind is not str and isinstance(value, str) and any(map(str.isdigit, value)):  # nan and inf are words
        for number in (int, float):
            with suppress(ValueError):
                return number(value)
    return value


def _parts(text: str) -> list[str] | str:
    """Returns the texts of a list in brackets; another text stays as it is."""
    inner = text.strip()
    if not (inner.startswith("[") and inner.endswith("]")):
        return text
    return inner[1:-1].split(",") if inner[1:-1].strip() else []


def _as(kind: Any, read: Any) -> Any:
    """Returns what was read as a `kind`, None where it is none. Raises OverflowError."""
    if get_origin(kind) is tuple:
        numbers = [_as(float, part) for part in read] if isinstance(read, list) else []
        return tuple(numbers) if len(numbers) == len(get_args(kind)) and None not in numbers else None
    if kind is float and type(read) is int:
        return float(read)
    return read if type(read) is kind else None  # True is no number
