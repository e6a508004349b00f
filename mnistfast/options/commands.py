"""The options of the commands, as dataclasses: what none of them keeps. What a training keeps is in `config`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mnistfast.errors import UsageError
from mnistfast.options.config import PRESETS
from mnistfast.options.fields import (
    DEVICE_HELP,
    HEAD_HELP,
    THREADS_HELP,
    one_of,
    option,
    require,
    require_positive,
    require_threads,
)

FORMATS = ("onnx", "pt2", "safetensors")


@dataclass(frozen=True)
class ScreenOptions:
    """What a command prints."""

    quiet: bool = option(False, "print nothing but errors")
    json: bool = option(False, "print the result, or an error, as one JSON object")
    debug: bool = option(False, "print the traceback of an error")


@dataclass(frozen=True)
class ThreadOptions(ScreenOptions):
    """What a command prints, and how many threads it computes with."""

    threads: int | None = option(None, THREADS_HELP)

    def __post_init__(self) -> None:
        require_threads(self.threads)


@dataclass(frozen=True)
class DeviceOptions(ThreadOptions):
    """What a command prints, and what it computes on."""

    device: str = option("auto", DEVICE_HELP)


@dataclass(frozen=True)
class RunOptions(ScreenOptions):
    """Where a training run writes, and whether there is one."""

    out: str | None = option(None, "the run's folder; default: runs/<date-time>-<model>-s<seed>")
    resume: str | None = option(None, "continue the run in this folder as if it had never stopped")
    overwrite: bool = option(False, "replace the run that is in --out")
    offline: bool = option(False, "never open a connection")
    tensorboard: bool = option(False, "write the figures of each epoch for TensorBoard too (its extra: tensorboard)")
    data_check: bool = option(False, "look through the data, say what is in it and what is wrong, and train nothing")

    def __post_init__(self) -> None:
        if self.resume is not None and (self.out is not None or self.overwrite):
            raise UsageError("--resume continues in the run's own folder", "--out and --overwrite start a new run")


@dataclass(frozen=True)
class SearchOptions(ScreenOptions):
    """How long is searched, and where what is found goes.

    Raises:
        UsageError: a value that cannot work.
    """

    trials: int = option(20, "how many trainings to try")
    out: str | None = option(None, "the search's folder; default: runs/<date-time>-search-<model>-s<seed>")
    overwrite: bool = option(False, "replace the search that is in --out")
    offline: bool = option(False, "never open a connection")

    def __post_init__(self) -> None:
        require_positive(self, "trials")


@dataclass(frozen=True)
class EvaluateOptions(DeviceOptions):
    """What is scored on what.

    Raises:
        UsageError: a value that cannot work.
    """

    data: str | None = option(None, "name or path of the data; default: what the run was trained on")
    out: str | None = option(
        None, "folder to write to; default: evaluate-<data>[+<what else was asked>] beside the first checkpoint"
    )
    min_accuracy: float | None = option(None, "exit with 8 when the accuracy, a fraction, is below this")
    classes: str | None = option(None, "only the images of these classes; default: as in the run, on its own data")
    resize: int | None = option(None, "make every image this many pixels wide and high; default: as in the run")
    gray: bool = option(False, "make colour images grey; default: as in the run")
    batch_size: int | None = option(None, "images a step; default: the model's")
    tta: int = option(0, "test-time augmentation: look at each image moved by up to so many pixels, take the mean")
    head: int = option(0, HEAD_HELP)
    offline: bool = option(False, "never open a connection")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "batch_size")
        require("tta", self.tta, lambda value: 0 <= value <= 4, "from 0 to 4")
        require("head", self.head, lambda value: value >= 0, "0 or more")
        if self.min_accuracy is not None:
            require("min_accuracy", self.min_accuracy, lambda value: 0 <= value <= 1, "a fraction between 0 and 1")


@dataclass(frozen=True)
class BenchOptions(ThreadOptions):
    """What is measured, and how long.

    Raises:
        UsageError: a value that cannot work.
    """

    only: str | None = option(None, 'measure what has this in its name alone, as "inference" or "layer, training"')
    all: bool = option(False, "the whole table of shapes, every form compiled, and max-autotune: takes hours")
    seconds: float = option(1.0, "of measuring each workload, all forms together")
    no_compile: bool = option(False, "leave torch.compile out, which takes seconds a graph to compile")
    out: str | None = option(None, "folder to write to; default: runs/<date-time>-bench")
    device: str = option("auto", "auto, cpu, cuda, cuda:1")

    def __post_init__(self) -> None:
        super().__post_init__()
        require("seconds", self.seconds, lambda value: 0 < value < math.inf, "above 0 and finite")


@dataclass(frozen=True)
class TimeToOptions(DeviceOptions):
    """Which recipes are timed until which accuracy.

    Raises:
        UsageError: a value that cannot work.
    """

    model: str = option("fast", "network whose preset is the recipe")
    against: str | None = option(None, "network whose preset is timed beside it, in the same run")
    target: float = option(99.0, "mean accuracy to reach, in percent")
    seeds: int = option(5, "trainings of each recipe in each form")
    forms: str = option("all", "all; channels_last, of torch's own layers in that form only; or fused, of none of them")
    validate: bool = option(False, "hold training images out and judge by these: the test images are not looked at")
    data: str | None = option(None, "name or path of the data; default: mnist where it can be had, else the sample")
    out: str | None = option(None, "folder for time_to.json; default: nothing is written")
    offline: bool = option(False, "never open a connection")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model", self.model, PRESETS)
        one_of("against", self.against or self.model, PRESETS)
        one_of("forms", self.forms, ("all", "channels_last", "fused"))
        require("target", self.target, lambda value: 0 < value <= 100, "above 0 and at most 100")
        require_positive(self, "seeds")


@dataclass(frozen=True)
class PredictOptions(DeviceOptions):
    """What reads pictures, and what is said of them.

    Raises:
        UsageError: a value that cannot work.
    """

    checkpoint: str | None = option(None, "a run's folder or a checkpoint; default: the newest run in runs")
    head: int = option(0, HEAD_HELP)
    top_k: int = option(3, "how many classes to name for each picture")
    reject_below: float = option(0.0, "give no label when the best class is less probable than this")
    save_view: str | None = option(None, "folder for the small pictures that the model saw; default: not written")
    csv: bool = option(False, "print CSV instead of text")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "top_k")
        require("head", self.head, lambda value: value >= 0, "0 or more")
        require("reject_below", self.reject_below, lambda value: 0 <= value <= 1, "a probability between 0 and 1")
        if self.csv and self.json:
            raise UsageError("--csv and --json exclude each other")


@dataclass(frozen=True)
class ExportOptions(ThreadOptions):
    """What a model is written as.

    Raises:
        UsageError: a value that cannot work.
    """

    format: str = option(",".join(FORMATS), f"one or more of {', '.join(FORMATS)}, with commas between")
    head: int = option(0, HEAD_HELP)
    out: str | None = option(None, "folder to write to; default: export beside the checkpoint")
    overwrite: bool = option(False, "replace files that are there")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.formats:
            one_of("format", name, FORMATS)
        require("head", self.head, lambda value: value >= 0, "0 or more")

    @property
    def formats(self) -> list[str]:
        """The formats, one by one."""
        return list(dict.fromkeys(name.strip() for name in self.format.split(",")))


@dataclass(frozen=True)
class DemoOptions(DeviceOptions):
    """What the page reads with, and where it is served.

    Raises:
        UsageError: a value that cannot work.
    """

    checkpoint: str | None = option(None, "a run's folder or a checkpoint; default: the newest run in runs")
    host: str = option("127.0.0.1", "address to listen on; 127.0.0.1 lets nobody else in")
    port: int = option(8765, "port to listen on; 0: any free one")

    def __post_init__(self) -> None:
        super().__post_init__()
        require("host", self.host, bool, "an address or a name: 0.0.0.0 listens on all of this machine's")
        require("port", self.port, lambda value: 0 <= value <= 65535, "from 0 to 65535")
