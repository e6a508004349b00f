"""The options that a command line or a YAML file names, with values of the types of their fields."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from mnistfast import __version__
from mnistfast.errors import UsageError, nearest
from mnistfast.files.yaml_file import read_options
from mnistfast.options.fields import Options, flags_of, spec_of
from mnistfast.options.values import converted


class Parser(argparse.ArgumentParser):
    """argparse's parser over dataclasses of options: only what was given comes out, and mistakes are UsageErrors."""

    def __init__(self, prog: str, description: str, *classes: type[Options]) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"mnistfast {__version__}")
        self._types: dict[str, Any] = {}
        self._flags: dict[str, str] = {}
        self._in_files: dict[str, str] = {}  # a field's name by its own and by those of its flags
        self._headings: dict[str, Any] = {"": self}
        for cls in classes:
            types = get_type_hints(cls)
            for option in fields(cls):
                self._types[option.name] = types[option.name]
                self._add(option, cls)

    def _add(self, option: Field[Any], cls: type[Options]) -> None:
        spec, flags = spec_of(option), flags_of(option)
        self._flags[option.name] = flags[0]
        self._in_files |= dict.fromkeys((option.name, *(flag[2:].replace("-", "_") for flag in flags)), option.name)
        if spec.group not in self._headings:
            self._headings[spec.group] = self.add_argument_group(spec.group)
        if self._types[option.name] is bool:
            how: dict[str, Any] = {"action": "store_true"}
        else:
            how = {"metavar": spec.metavar or option.name.upper()}
        self._headings[spec.group].add_argument(
            *flags, dest=option.name, default=argparse.SUPPRESS, help=help_of(option, cls), **how
        )

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """Returns the options that `argv` names, with their values. Raises UsageError."""
        namespace, unknown = self.parse_known_args(argv)
        given = self._converted(vars(namespace))
        for word in unknown:
            if not word.startswith("-"):
                raise UsageError(f"unexpected argument {word!r}")
            raise UsageError(f"unknown option {word}{nearest(word.split('=')[0], self._flags.values())}")
        return given

    def given_in_file(self, path: str | Path) -> dict[str, Any]:
        """Returns the options that the YAML file at `path` names, with their values. Raises UsageError."""
        given = {}
        for written, value in read_options(Path(path)).items():
            name = self._in_files.get(written.replace("-", "_"))
            if name is None:
                raise UsageError(f"unknown option {written!r} in the configuration file{nearest(written, self._types)}")
            given[name] = value
        return self._converted(given)

    def _converted(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `given` with its options' values in their types; other arguments stay as they are."""
        return {
            name: converted(self._flags[name], self._types[name], value) if name in self._types else value
            for name, value in given.items()
        }

    def error(self, message: str) -> NoReturn:
        """Raises what argparse found as a UsageError."""
        raise UsageError(" ".join(message.split()))


def help_of(option: Field[Any], cls: type[Options]) -> str:
    """Returns the line of --help for a field of `cls`: what it is, what it may be, what it is unless told."""
    spec, usual = spec_of(option), cls.default_words(option)
    text = spec.text + (f": {', '.join(spec.choices)}" if spec.choices else "")
    return text + (f"; default: {usual}" if usual else "")


Picked = TypeVar("Picked", bound=Options)


def pick(cls: type[Picked], given: Mapping[str, Any]) -> Picked:
    """Returns a `cls` of those options in `given` that it has."""
    return cls(**{option.name: given[option.name] for option in fields(cls) if option.name in given})
