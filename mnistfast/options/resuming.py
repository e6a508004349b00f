"""Which options a resumed run may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mnistfast.errors import UsageError
from mnistfast.options.learning import LearnConfig

# Those where hashes tell whether files are the same, or where only speed is at stake; anything else would make it
# another run.
FREE = frozenset({"data", "source", "old_data", "device", "threads", "graph"})


def settled(config: LearnConfig) -> dict[str, Any]:
    """Returns the options that a resumed run must have as it had them, as plain data."""
    return {name: value for name, value in asdict(config).items() if name not in FREE}


def resumed(saved: Mapping[str, Any], given: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Returns the options of a run to resume.

    Args:
        saved: the options of the run's config.yaml.
        given: the options given now.
        folder: the run, for messages.

    Raises:
        UsageError: an option is given with another value than the run has.
    """
    for name, value in given.items():
        if name not in FREE and saved.get(name) != value:
            raise UsageError(
                f"--{name.replace('_', '-')} is {value}, but {folder} was started with {saved.get(name)}",
                "A resumed run continues as it began",
                "leave the option out, or start a new run",
            )
    return {**saved, **{name: given[name] for name in FREE & given.keys()}}
