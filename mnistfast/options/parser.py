"""The options of a command, read from its line or from a YAML file into the dataclasses of `config`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import jsonargparse

from mnistfast import __version__
from mnistfast.errors import UsageError, nearest
from mnistfast.files.yaml_file import read_options

LARGEST = 2**63  # whole numbers are below: the seed's bound, and torch's


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse's parser over dataclasses: only what was given comes out, and mistakes are one-line UsageErrors."""

    def __init__(self, prog: str, description: str, *groups: type) -> None:
        super().__init__(
            prog=prog,
            description=description,
            print_config=None,
            allow_abbrev=False,
            formatter_class=argparse.HelpFormatter,  # jsonargparse's own adds a type and a default that are not ours
        )
        self.add_argument("--version", action="version", version=f"mnistfast {__version__}")
        self._types: dict[str, Any] = {}
        self._flags: dict[str, str] = {}
        for group in groups:
            types = get_type_hints(group)
            for option in fields(group):
                if option.name not in self._types:
                    self._add(option, types[option.name], getattr(group, "has_presets", False))

    def _add(self, option: Field[Any], kind: Any, has_presets: bool) -> None:
        self._types[option.name] = kind
        self._flags[option.name] = flag = option.metadata["flag"] or f"--{option.name.replace('_', '-')}"
        text = option.metadata["help"]
        if kind is bool:
            self.add_argument(flag, action="store_true", help=text)
            return
        if has_presets and option.metadata["preset"]:
            text += "; default: the model's preset"
        elif option.default is not None and "default" not in text:
            text += f"; default: {option.default}"
        self.add_argument(flag, dest=option.name, type=kind, help=text, metavar=option.name.upper())

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """Returns the options that `argv` names, with their values. Raises UsageError."""
        return self._checked(lambda: self.parse_args(list(argv), defaults=False))

    def given_in_file(self, path: str | Path) -> dict[str, Any]:
        """Returns the options that the YAML file at `path` names, with their values. Raises UsageError."""
        options = read_options(Path(path))
        return self._checked(lambda: self.parse_object(options, defaults=False))

    def _checked(self, parse: Callable[[], jsonargparse.Namespace]) -> dict[str, Any]:
        try:
            given = parse().as_dict()
        except OverflowError as error:  # a whole number where a float is wanted
            raise UsageError("an option's number is too large", str(error)) from error
        for name, value in given.items():
            if isinstance(value, int) and abs(value) >= LARGEST:
                raise UsageError(f"--{name.replace('_', '-')} is too large a number", f"It must be below {LARGEST:,}")
        return given

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Turns jsonargparse's explanations, some of them ten lines long, into one line that names the option."""
        if match := re.search(r"unrecognized arguments: (\S+)", message):
            if not match[1].startswith("-"):
                raise UsageError(f"unexpected argument {match[1]!r}")
            raise UsageError(f"unknown option {match[1]}{nearest(match[1].split('=')[0], self._flags.values())}")
        if match := re.search(r"Option '(.+?)' is not accepted", message):
            raise UsageError(f"unknown option {match[1]!r} in the configuration file{nearest(match[1], self._types)}")
        if match := re.search(r'Parser key "(\w+)".*?(?:Given|Got) value: (.*?)(?:\n|$)', message, re.DOTALL):
            name = match[1]
            raise UsageError(f"{self._flags[name]} is {match[2]}", f"It must be {_kind(self._types[name])}")
        raise UsageError(" ".join(message.split()))


def _kind(kind: Any) -> str:
    """Returns in words what a value of the type `kind` is."""
    kinds = [part for part in get_args(kind) if part is not type(None)] if type(None) in get_args(kind) else [kind]
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(kinds[0], "two numbers such as [0.9, 0.999]")


Options = TypeVar("Options")


def pick(cls: type[Options], given: Mapping[str, Any]) -> Options:
    """Returns a `cls` of those options in `given` that it has."""
    return cls(**{option.name: given[option.name] for option in fields(cls) if option.name in given})  # type: ignore[arg-type]
