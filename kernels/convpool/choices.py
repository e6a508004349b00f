"""Measured choices: which plan of a call was the fastest on this machine. `tuning` makes them, `planning` asks.

A choice holds for an environment, and in it for a call: sizes, with the batch rounded up to a power of two, dtype,
precision, and `protocol.Use`. Those of an environment lie in one file in the cache folder, read once in a process, when
a call of `auto` is first planned on such a device. A file that is damaged or not ours is as good as none.
"""

import hashlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

import torch

from convpool import cache
from convpool.environment import environment
from convpool.geometry import Geometry, Settings, make_settings
from convpool.protocol import Use
from convpool.registry import forget_plans
from convpool.torch_private import constant_when_compiled, conv_precision

FORMAT = 1  # of what `Choices.to_json` makes


@dataclass(frozen=True)
class Choice:
    """The fastest plan of a call.

    Attributes:
        plan: as `Plan.call`, "cpu/fused".
        seconds: of one call by each plan that took part.
        date: of the measurement, "2026-11-27".
        device: on which it was made, by its name.
    """

    plan: str
    seconds: Mapping[str, float]
    date: str
    device: str

    def __post_init__(self) -> None:
        """Refuse what no measurement makes: a choice may come from a file that somebody else wrote.

        Raises:
            ValueError: names the field, its value and what is allowed.
        """
        if not isinstance(self.seconds, Mapping):
            raise ValueError(f"seconds must be given by plan, got {self.seconds!r}")
        for plan in (self.plan, *self.seconds):
            if not isinstance(plan, str) or not re.fullmatch(r"[\w-]+/[\w-]+", plan, re.ASCII):
                raise ValueError(f"a plan must be two words with '/' between them, got {plan!r}")
        for value in self.seconds.values():
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise ValueError(f"seconds must be finite numbers, got {value!r}")
        if not isinstance(self.date, str):
            raise ValueError(f"date must be a text, got {self.date!r}")
        date.fromisoformat(self.date)
        if not isinstance(self.device, str) or not self.device.isprintable():
            raise ValueError(f"device must be a printable text, got {self.device!r}")

    def reason(self, threads: int | None, replayed: bool) -> str:
        """In words, as `explain` gives it; `threads` are those of a CPU."""
        where = self.device if threads is None else f"{self.device}, {threads} thread{'s' * (threads != 1)}"
        others = sorted(self.seconds.items(), key=lambda item: item[1])
        figures = [f"{self.seconds[self.plan] * 1e3:.3g} ms"] if self.plan in self.seconds else []
        figures += [f"{plan} {seconds * 1e3:.3g} ms" for plan, seconds in others if plan != self.plan]
        regime = "replayed" if replayed else "called"
        return f"measured {self.date} on {where}, {regime}: {', '.join(figures)}"


@dataclass(frozen=True)
class Choices:
    """Choices by the `key` of their call; plain data, to be kept with a checkpoint or sent to another process."""

    by_call: Mapping[str, Choice] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.by_call)

    def merged(self, newer: "Choices") -> "Choices":
        """These and the newer ones, which count where both have a call."""
        return Choices({**self.by_call, **newer.by_call})

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "choices": {call: asdict(choice) for call, choice in self.by_call.items()}}

    @staticmethod
    def from_json(value: object) -> "Choices":
        """The inverse of `to_json`, which trusts nobody.

        Raises:
            ValueError: it is something else; the message says what.
        """
        if not isinstance(value, dict) or not isinstance(value.get("choices"), dict):
            raise ValueError("it is no table of choices")
        if value.get("format") != FORMAT:
            raise ValueError(f"its format is {value.get('format')!r}, this version reads {FORMAT}")
        return Choices({_checked_call(call): _choice(entry) for call, entry in value["choices"].items()})


def _checked_call(call: object) -> str:
    if not isinstance(call, str) or not call.isprintable():
        raise ValueError(f"a call must be a printable text, got {call!r}")
    return call


def _choice(entry: object) -> Choice:
    names = {one.name for one in fields(Choice)}
    if not isinstance(entry, dict) or entry.keys() != names:
        raise ValueError(f"a choice must have {', '.join(sorted(names))}, got {entry!r}")
    return Choice(**entry)


_USUAL = make_settings((1, 1))


def key(geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use) -> str:
    """A call in words; calls of one key share a choice.

    The batch is rounded up to a power of two, so that the last batch of an epoch is as the others more often than not.
    """
    batch, *image = geometry.x_shape
    words = [
        device.type,
        str(dtype).removeprefix("torch."),
        "x=" + "x".join(map(str, (1 << (batch - 1).bit_length() if batch else 0, *image))),
        "weight=" + "x".join(map(str, geometry.weight_shape)),
    ]
    for name, value in geometry.settings._asdict().items():
        if value != getattr(_USUAL, name):
            words.append(f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else int(value)}")
    words += ["channels_last"] if use.channels_last else []
    words.append(("training dx" if use.dx else "training") if use.training else "inference")
    if device.type == "cpu":
        return " ".join([*words, f"threads={use.threads}"])
    words += [f"precision={conv_precision()}"] if dtype == torch.float32 else []
    return " ".join([*words, "replayed" if use.replayed else "called"])


_held: Choices | None = None  # by `use`
_read: dict[torch.device, Choices] = {}
_said: set[str] = set()


@contextmanager
def use(table: Choices | None) -> Iterator[None]:
    """Let exactly these choices hold inside, in the whole process, whatever lies in the cache; None: no choice at all.

    What torch.compile compiled keeps the plans that it met.
    """
    global _held
    before, _held = _held, Choices() if table is None else table
    forget_plans()
    try:
        yield
    finally:
        _held = before
        forget_plans()


def in_force(device: torch.device) -> Choices:
    """The choices that calls on the device follow: those of `use`, else those in the cache."""
    return _cached(device) if _held is None else _held


def _cached(device: torch.device) -> Choices:
    if device not in _read:
        path = file_of(device)
        _read[device] = Choices() if path is None else _stored(path, environment(device))
    return _read[device]


@constant_when_compiled
def find(
    sizes: tuple[int, ...],
    settings: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    use: tuple[Any, ...],
) -> tuple[str, str] | None:
    """The chosen plan of a call, and why; None where nothing is known.

    Args:
        sizes: of x, then of weight: plain tuples are what the compiler gives to a function that it does not follow.
        settings: as `Settings.pack` makes them.
        use: `protocol.Use`.
    """
    geometry, used = Geometry.of(sizes[:4], sizes[4:], Settings.unpack(settings)), Use(*use)
    choice = in_force(device).by_call.get(key(geometry, dtype, device, used))
    if choice is None:
        return None
    on_cpu = device.type == "cpu"
    return choice.plan, choice.reason(used.threads if on_cpu else None, used.replayed and not on_cpu)


def file_of(device: torch.device) -> Path | None:
    """Where the choices for the device's environment lie, whether or not there are some; None: nowhere."""
    folder = cache.folder()
    found = {} if folder is None else environment(device)
    if folder is None or not found:
        return None
    name = re.sub(r"\W+", "-", found["device"], flags=re.ASCII).strip("-")[:60]
    parts = "\n".join(f"{name}={value}" for name, value in sorted(found.items()))
    return folder / f"{name}-{hashlib.sha256(parts.encode()).hexdigest()[:16]}.json"


def keep(device: torch.device, new: Choices) -> Path | None:
    """Let the choices hold on such devices from now on, and write them to the cache; returns the file.

    Where they cannot be written, which is said once, they hold in this process alone, and there is no file; with
    CONVPOOL_CACHE=off they hold nowhere.
    """
    path = file_of(device)
    if path is None:
        return None
    found = environment(device)
    written: Path | None = path

    def content() -> dict[str, Any]:
        _read[device] = _stored(path, found).merged(new)
        return {"environment": found, **_read[device].to_json()}

    try:
        cache.update(path, content)
    except OSError as error:
        _say_once(f"measured choices cannot be written to {path}: {error}")
        _read[device], written = _cached(device).merged(new), None
    forget_plans()
    return written


def forget() -> None:
    """Look into the cache anew when a call is next planned."""
    _read.clear()
    forget_plans()


def clear(device: torch.device) -> Path | None:
    """Remove the choices for the device's environment; returns their file, if there was one.

    Raises:
        OSError: it cannot be removed.
    """
    path = file_of(device)
    forget()
    if path is None or not path.exists():
        return None
    path.unlink()
    return path


def _stored(path: Path, found: Mapping[str, str]) -> Choices:
    try:
        value = cache.read(path)
        if not isinstance(value, dict) or value.get("environment") != found:
            raise ValueError("it was made for something else")
        return Choices.from_json(value)
    except FileNotFoundError:
        return Choices()
    except (OSError, ValueError) as error:
        _say_once(f"measured choices in {path} are ignored: {error}")
        return Choices()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        warnings.warn(f"convpool: {text}", stacklevel=2)
