"""An option of a command is a field of a dataclass: all that is known of it stands there, once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from typing import Any

from mnistfast.errors import UsageError, nearest


class _Unset(Enum):
    """The default of a field that a preset may fill: not None, which may be what a preset or a user means."""

    PRESET = "the preset's"


@dataclass(frozen=True)
class Bound:
    """What the values of an option have to be; `words` says it after "It must be"."""

    holds: Callable[[Any], bool]
    words: str


@dataclass(frozen=True)
class Spec:
    """What a field says of its option; see `option`."""

    default: Any
    text: str
    usual: str
    choices: Sequence[str]
    bound: Bound | None
    group: str
    preset: bool
    flags: tuple[str, ...]
    metavar: str


def option(
    default: Any,
    text: str,
    *,
    usual: str = "",
    choices: Sequence[str] = (),
    bound: Bound | None = None,
    group: str = "",
    preset: bool = False,
    flags: Sequence[str] = (),
    metavar: str = "",
) -> Any:
    """Returns the field of an option.

    Args:
        default: its value where nothing is said; with `preset` where the preset says nothing either.
        text: what it is, for --help, which adds the choices and the default.
        usual: the default in words, where `default` does not tell it.
        choices: the texts that it may be.
        bound: what it has to be; None is allowed where it is the default.
        group: the heading in --help.
        preset: a preset may set it: see `Options.preset`.
        flags: its names on the command line, where they are not the field's.
        metavar: what stands for its value in --help, where that is not the field's name.
    """
    spec = Spec(default, text, usual, choices, bound, group, preset, tuple(flags), metavar)
    return field(default=_Unset.PRESET if preset else default, metadata={"spec": spec})


def spec_of(option: Field[Any]) -> Spec:
    """Returns what `option` said of the field."""
    spec: Spec = option.metadata["spec"]
    return spec


def flags_of(option: Field[Any]) -> tuple[str, ...]:
    """Returns the names of the option on the command line, the one for messages first."""
    return spec_of(option).flags or (flag(option.name),)


def flag(name: str) -> str:
    """Returns how a field's name is written on the command line."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Options:
    """Options of a command. Fields that are left to the preset get its values when the object is made.

    Raises:
        UsageError: a value that cannot work.
    """

    def __post_init__(self) -> None:
        unset = []
        for each in fields(self):
            value, spec = getattr(self, each.name), spec_of(each)
            if value is _Unset.PRESET:
                unset.append(each)
            elif value is not None or spec.default is not None:
                _check(each, value)
        preset = self.preset() if unset else {}
        for each in unset:
            object.__setattr__(self, each.name, preset.get(each.name, spec_of(each).default))

    def preset(self) -> Mapping[str, Any]:
        """Returns values of fields by name, for those that nobody gave. What has no preset keeps to the defaults."""
        return {}

    @classmethod
    def default_words(cls, option: Field[Any]) -> str:
        """Returns what the option is unless told, for --help; "" where there is nothing to say."""
        spec = spec_of(option)
        return spec.usual or ("" if spec.default in (None, "") or spec.default is False else str(spec.default))


def _check(option: Field[Any], value: Any) -> None:
    spec = spec_of(option)
    if spec.choices:
        one_of(option.name, value, spec.choices)
    if spec.bound and not spec.bound.holds(value):
        raise UsageError(f"{flags_of(option)[0]} is {value}", f"It must be {spec.bound.words}")


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Raises UsageError unless `value` of the option `name` is among `choices`; it names the nearest."""
    if value not in choices:
        raise UsageError(
            f"unknown {name} {value!r}{nearest(value, choices)}", f"{flag(name)} takes {', '.join(choices)}"
        )
