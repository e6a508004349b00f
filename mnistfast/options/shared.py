"""The options that several commands have, as fields: each is told of here, once."""

from __future__ import annotations

from typing import Any

from mnistfast.options.bounds import NOT_NEGATIVE, between
from mnistfast.options.device import DEVICES
from mnistfast.options.fields import option

DATA, LEARNING, MODEL, MACHINE, OUTPUT = "data", "learning", "model", "machine", "output"  # headings of --help
DEFAULT_DATA = "mnist where it can be had, else the sample"


def data(usual: str) -> Any:
    """Returns the option --data."""
    return option(None, "name or path of the data", usual=usual, group=DATA)


def classes(usual: str = "") -> Any:
    """Returns the option --classes."""
    text = "only the images of these classes, named with commas between: 0,1,2,3,4"
    return option(None, text, usual=usual, group=DATA)


def resize(usual: str = "", **more: Any) -> Any:
    """Returns the option --resize."""
    return option(None, "make every image this many pixels wide and high", usual=usual, group=DATA, **more)


def gray(usual: str = "") -> Any:
    """Returns the option --gray."""
    return option(False, "make colour images grey", usual=usual, group=DATA)


def offline() -> Any:
    """Returns the option --offline."""
    return option(False, "never open a connection", group=DATA)


def checkpoint() -> Any:
    """Returns the option --checkpoint."""
    return option(None, "a run's folder or a checkpoint", usual="the newest run in runs", group=MODEL)


def head() -> Any:
    """Returns the option --head."""
    text = "of a fine-tuned model: 0 is its present task's head, 1 that of the task before, and so on"
    return option(0, text, bound=NOT_NEGATIVE, group=MODEL)


def device(names: str = DEVICES) -> Any:
    """Returns the option --device."""
    return option("auto", names, group=MACHINE)


def threads() -> Any:
    """Returns the option --threads; the bound is what a process can have."""
    return option(None, "CPU threads", usual="torch's choice", bound=between(1, 1024), group=MACHINE)


def out(text: str, usual: str) -> Any:
    """Returns the option --out."""
    return option(None, text, usual=usual, group=OUTPUT)


def overwrite(what: str) -> Any:
    """Returns the option --overwrite."""
    return option(False, f"replace {what}", group=OUTPUT)
