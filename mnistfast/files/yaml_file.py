"""Files of options, in YAML: a run's config.yaml, or what a user gives with --config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnistfast.errors import UsageError
from mnistfast.files.small import read_small

DEPTH = 3  # an option may be a list of texts; deeper is nothing of ours


def read_options(path: Path) -> dict[str, Any]:
    """Returns what the YAML file at `path` holds: values by the names of options, which are not checked yet.

    Raises:
        UsageError: missing, no text, no YAML, no options by name, or with aliases or deep nesting, by which a few lines
            can stand for any amount of memory.
    """
    import yaml  # only who has such a file needs it

    if not path.exists():
        raise UsageError(f"no configuration file at {path}")
    try:
        text = read_small(path)
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > DEPTH:
                raise ValueError("It has aliases, or lists in lists")
        found = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is no file of options", " ".join(str(error).split())[:300]) from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UsageError(f"{path} is no file of options", "It needs lines such as `lr: 0.004`")
    return found
