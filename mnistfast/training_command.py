"""What commands that train have in common: the configuration from flags, a file or a run, and the look at the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from mnistfast.errors import CheckpointError, DataError, UsageError
from mnistfast.options.commands import FileOptions, RunOptions
from mnistfast.options.fields import Options
from mnistfast.options.finetuning import FinetuneConfig
from mnistfast.options.learning import TrainConfig
from mnistfast.options.parser import Parser, pick
from mnistfast.options.resuming import resumed
from mnistfast.text import show

Config = TypeVar("Config", TrainConfig, FinetuneConfig)


def parser(prog: str, description: str, cls: type[Config], *more: type[Options]) -> Parser:
    """Returns the parser of a command that trains by a configuration of class `cls`, with the options of `more` too."""
    return Parser(prog, description, cls, RunOptions, FileOptions, *more)


def read(prog: str, cls: type[Config], flags: Mapping[str, Any]) -> tuple[Config, RunOptions]:
    """Returns the configuration and the options that the parsed `flags` come to.

    Raises:
        CheckpointError: the run to resume is none.
        UsageError: values that cannot work, or that the run to resume was not started with.
    """
    options, file = pick(RunOptions, flags), pick(FileOptions, flags).config
    given = {} if file is None else _in_file(prog, cls, file)
    given |= {option.name: flags[option.name] for option in fields(cls) if option.name in flags}
    if options.resume is None:
        return cls(**given), options
    from mnistfast.runs import run_folder

    run_folder.check(Path(options.resume))
    saved = _saved(prog, cls, options.resume, Path(options.resume) / run_folder.CONFIG)
    return cls(**resumed(saved, given, options.resume)), options


def check_data(config: TrainConfig | FinetuneConfig, options: RunOptions) -> int:
    """Says what is in the data and what is wrong with it; returns the exit code.

    Raises:
        DataError: something is wrong.
    """
    from mnistfast.data.check import look_through
    from mnistfast.data.sources import load

    findings = look_through(
        load(config.data, offline=options.offline, resize=config.resize, gray=config.gray, classes=config.classes)
    )
    if options.json:
        print(json.dumps(findings.as_json()))
    elif not options.quiet:
        for line in findings.lines():
            show(line)
    if findings.wrong:
        raise DataError(findings.wrong[0], "; ".join(findings.wrong[1:]), "mend the files, or leave --data-check out")
    return 0


def _saved(prog: str, cls: type[Config], run: str, path: Path) -> dict[str, Any]:
    try:
        return _in_file(prog, cls, path)
    except UsageError:
        other, command = (FinetuneConfig, "finetune") if cls is TrainConfig else (TrainConfig, "train")
        with suppress(UsageError):
            _in_file(prog, other, path)
            raise CheckpointError(f"{run} is no run of {prog}", fix=f"mnistfast {command} --resume {run}") from None
        raise


def _in_file(prog: str, cls: type[Options], path: str | Path) -> dict[str, Any]:
    return Parser(prog, "", cls).given_in_file(path)  # what to train, not where to write
