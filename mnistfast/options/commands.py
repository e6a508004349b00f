"""The options of the commands, as dataclasses: what none of them keeps. What a training keeps is in `learning`."""

from __future__ import annotations

from dataclasses import dataclass

from mnistfast.errors import UsageError
from mnistfast.options import shared
from mnistfast.options.bounds import AT_LEAST_1, POSITIVE, between, fraction
from mnistfast.options.fields import Bound, Options, one_of, option
from mnistfast.options.presets import PRESETS
from mnistfast.options.shared import DATA, LEARNING, MACHINE, MODEL, OUTPUT

FORMATS = ("onnx", "pt2", "safetensors")


@dataclass(frozen=True)
class ScreenOptions(Options):
    """What a command prints."""

    quiet: bool = option(False, "print nothing but errors", group=OUTPUT)
    json: bool = option(False, "print the result, or an error, as one JSON object", group=OUTPUT)
    debug: bool = option(False, "print the traceback of an error", group=OUTPUT)


@dataclass(frozen=True)
class ThreadOptions(ScreenOptions):
    """What a command prints, and how many threads it computes with."""

    threads: int | None = shared.threads()


@dataclass(frozen=True)
class DeviceOptions(ThreadOptions):
    """What a command prints, and what it computes on."""

    device: str = shared.device()


@dataclass(frozen=True)
class RunOptions(ScreenOptions):
    """Where a training run writes, and whether there is one."""

    out: str | None = shared.out("the run's folder", "runs/<date-time>-<model>-s<seed>")
    resume: str | None = option(None, "continue the run in this folder as if it had never stopped", group=OUTPUT)
    overwrite: bool = shared.overwrite("the run that is in --out")
    offline: bool = shared.offline()
    tensorboard: bool = option(
        False, "write the figures of each epoch for TensorBoard too (its extra: tensorboard)", group=OUTPUT
    )
    data_check: bool = option(
        False, "look through the data, say what is in it and what is wrong, and train nothing", group=DATA
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume is not None and (self.out is not None or self.overwrite):
            raise UsageError("--resume continues in the run's own folder", "--out and --overwrite start a new run")


@dataclass(frozen=True)
class FileOptions(Options):
    """Where the options of a training are read from, besides the command line, and shown."""

    config: str | None = option(None, "YAML file with options, such as a run's config.yaml", metavar="FILE")
    print_config: bool = option(False, "print the options as YAML", flags=("--print-config", "--print_config"))


@dataclass(frozen=True)
class MergeOptions(Options):
    """What `finetune` does in the place of learning."""

    merge: str | None = option(
        None, "write --from and this adapter as a checkpoint to file --out", group=OUTPUT, metavar="ADAPTER"
    )


@dataclass(frozen=True)
class SearchOptions(ScreenOptions):
    """How long is searched, and where what is found goes.

    Raises:
        UsageError: a value that cannot work.
    """

    trials: int = option(20, "how many trainings to try", bound=AT_LEAST_1, group=LEARNING)
    out: str | None = shared.out("the search's folder", "runs/<date-time>-search-<model>-s<seed>")
    overwrite: bool = shared.overwrite("the search that is in --out")
    offline: bool = shared.offline()


@dataclass(frozen=True)
class EvaluateOptions(DeviceOptions):
    """What is scored on what.

    Raises:
        UsageError: a value that cannot work.
    """

    data: str | None = shared.data("what the run was trained on")
    out: str | None = shared.out(
        "folder to write to", "evaluate-<data>[+<what else was asked>] beside the first checkpoint"
    )
    min_accuracy: float | None = option(
        None, "exit with 8 when the accuracy, a fraction, is below this", bound=fraction("fraction"), group=OUTPUT
    )
    classes: str | None = shared.classes("as in the run, on its own data")
    resize: int | None = shared.resize("as in the run")
    gray: bool = shared.gray("as in the run")
    batch_size: int | None = option(None, "images a step", usual="the model's", bound=AT_LEAST_1, group=MACHINE)
    tta: int = option(
        0,
        "test-time augmentation: look at each image moved by up to so many pixels, take the mean",
        bound=between(0, 4),
        group=MODEL,
    )
    head: int = shared.head()
    offline: bool = shared.offline()


@dataclass(frozen=True)
class BenchOptions(ThreadOptions):
    """What is measured, and how long.

    Raises:
        UsageError: a value that cannot work.
    """

    only: str | None = option(None, 'measure what has this in its name alone, as "inference" or "layer, training"')
    all: bool = option(False, "the whole table of shapes, every form compiled, and max-autotune: takes hours")
    seconds: float = option(1.0, "of measuring each workload, all forms together", bound=POSITIVE)
    no_compile: bool = option(False, "leave torch.compile out, which takes seconds a graph to compile")
    strict: bool = option(False, "exit with 8 where a time is not steady enough to be compared", group=OUTPUT)
    out: str | None = shared.out("folder to write to", "runs/<date-time>-bench")
    device: str = shared.device("auto, cpu, cuda, cuda:1")  # the layers have no kernels of ours on another


@dataclass(frozen=True)
class TimeToOptions(DeviceOptions):
    """Which recipes are timed until which accuracy.

    Raises:
        UsageError: a value that cannot work.
    """

    model: str = option("fast", "network whose preset is the recipe", choices=tuple(PRESETS), group=MODEL)
    against: str | None = option(
        None,
        "network whose preset is timed beside it, in the same run",
        choices=tuple(PRESETS),
        group=MODEL,
    )
    target: float = option(
        99.0,
        "mean accuracy to reach, in percent",
        bound=Bound(lambda value: 0 < value <= 100, "above 0 and at most 100"),
        group=LEARNING,
    )
    seeds: int = option(5, "trainings of each recipe in each form", bound=AT_LEAST_1, group=LEARNING)
    forms: str = option(
        "all",
        "channels_last, of torch's own layers in that form only; fused, of none of them",
        choices=("all", "channels_last", "fused"),
        group=LEARNING,
    )
    validate: bool = option(
        False, "hold training images out and judge by these: the test images are not looked at", group=DATA
    )
    data: str | None = shared.data(shared.DEFAULT_DATA)
    out: str | None = shared.out("folder for time_to.json", "nothing is written")
    offline: bool = shared.offline()


@dataclass(frozen=True)
class PredictOptions(DeviceOptions):
    """What reads pictures, and what is said of them.

    Raises:
        UsageError: a value that cannot work.
    """

    checkpoint: str | None = shared.checkpoint()
    head: int = shared.head()
    top_k: int = option(3, "how many classes to name for each picture", bound=AT_LEAST_1, group=OUTPUT)
    reject_below: float = option(
        0.0, "give no label when the best class is less probable than this", bound=fraction("probability"), group=OUTPUT
    )
    save_view: str | None = option(
        None, "folder for the small pictures that the model saw", usual="not written", group=OUTPUT
    )
    csv: bool = option(False, "print CSV instead of text", group=OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.csv and self.json:
            raise UsageError("--csv and --json exclude each other")


@dataclass(frozen=True)
class ExportOptions(ThreadOptions):
    """What a model is written as.

    Raises:
        UsageError: a value that cannot work.
    """

    format: str = option(",".join(FORMATS), f"one or more of {', '.join(FORMATS)}, with commas between", group=OUTPUT)
    head: int = shared.head()
    out: str | None = shared.out("folder to write to", "export beside the checkpoint")
    overwrite: bool = shared.overwrite("files that are there")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.formats:
            one_of("format", name, FORMATS)

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

    checkpoint: str | None = shared.checkpoint()
    host: str = option(
        "127.0.0.1",
        "address to listen on; 127.0.0.1 lets nobody else in",
        bound=Bound(bool, "an address or a name: 0.0.0.0 listens on all of this machine's"),
        group=OUTPUT,
    )
    port: int = option(8765, "port to listen on; 0: any free one", bound=between(0, 65535), group=OUTPUT)
