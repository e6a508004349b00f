"""What is learnt and how: TrainConfig, and what it shares with fine-tuning. A run keeps it, as YAML.

A flag beats `--config FILE`, the file beats the model's preset, the preset beats a default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass
from typing import Any

from mnistfast.errors import UsageError
from mnistfast.options import shared
from mnistfast.options.bounds import AT_LEAST_1, BELOW_1, NOT_NEGATIVE, POSITIVE, SHARE_OR_COUNT, between
from mnistfast.options.device import device_type
from mnistfast.options.fields import Bound, Options, option, spec_of
from mnistfast.options.presets import ON_GPU, PRESETS
from mnistfast.options.shared import DATA, LEARNING, MACHINE, MODEL

OPTIMIZERS = ("adam", "adamw", "sgd", "muon")
STARTS = ("random", "patches")
SCHEDULES = ("constant", "step", "cosine", "linear", "onecycle")
PRECISIONS = ("fp32", "bf16")
GRAPHS = ("auto", "on", "off")
TUNES = ("auto", "on", "off")
AUGMENTATIONS = ("none", "mild", "sources", "objects")  # of data.augment, which would bring torch with it

# A preset's epochs suit a set of MNIST's size. A run on a smaller set goes over it more often, until it has seen this
# many images: the 3,600 training images of the shipped sample make 12 epochs.
LEAST_IMAGES = 40_000
GROWTH = 0.6  # of an epoch's steps, over which its batches grow where they do
MOST_EPOCHS = 50  # ... and not forever: a set of a few hundred images is learnt (or not) by then


@dataclass(frozen=True)
class LearnConfig(Options):
    """How something is learnt, and from which images. `None` stands for what only the run can know; it fills it in.

    Raises:
        UsageError: a value that cannot work.
    """

    data: str | None = shared.data(shared.DEFAULT_DATA)
    epochs: int | None = option(
        None,
        "times over the training images",
        usual="the preset's, more for a small set",
        bound=AT_LEAST_1,
        group=LEARNING,
    )
    batch_size: int = option(128, "images a step", bound=AT_LEAST_1, group=LEARNING, preset=True)
    first_batch: int | None = option(
        None,
        "images of an epoch's first step, growing to --batch-size",
        bound=AT_LEAST_1,
        group=LEARNING,
        preset=True,
    )
    optimizer: str = option(
        "adam", "optimizer, sgd and muon with Nesterov's momentum", choices=OPTIMIZERS, group=LEARNING, preset=True
    )
    lr: float = option(4e-3, "peak learning rate", bound=POSITIVE, group=LEARNING, preset=True)
    schedule: str = option("onecycle", "learning rate over the steps", choices=SCHEDULES, group=LEARNING, preset=True)
    betas: tuple[float, float] = option(
        (0.9, 0.999),
        "Adam's and AdamW's averaging factors, as [0.9, 0.999]",
        bound=Bound(lambda pair: all(0 <= beta < 1 for beta in pair), "two numbers in [0, 1)"),
        group=LEARNING,
        preset=True,
    )
    momentum: float = option(0.9, "SGD's and Muon's momentum", bound=BELOW_1, group=LEARNING)
    weight_decay: float = option(0.0, "weight decay (decoupled for adamw)", bound=NOT_NEGATIVE, group=LEARNING)
    label_smoothing: float = option(
        0.0, "share of the target spread over all classes", bound=BELOW_1, group=LEARNING, preset=True
    )
    augment: str = option(
        "none", "how images are moved as they are learnt from", choices=AUGMENTATIONS, group=LEARNING, preset=True
    )
    ema: float = option(
        0.0,
        "keep the average of the weights over the steps with this decay, as 0.999; 0: no average",
        bound=BELOW_1,
        group=LEARNING,
        preset=True,
    )
    clip: float = option(0.0, "largest norm of a step's gradient; 0: any", bound=NOT_NEGATIVE, group=LEARNING)
    patience: int = option(
        0,
        "stop after this many epochs without a better validation result; 0: never",
        bound=NOT_NEGATIVE,
        group=LEARNING,
    )
    val: float = option(
        0.1,
        "held out of the training images: a share below 1 or a count; 0: nothing",
        bound=SHARE_OR_COUNT,
        group=DATA,
        preset=True,
    )
    limit: int | None = option(
        None,
        "learn from this many training images only, the same share of each class",
        bound=AT_LEAST_1,
        group=DATA,
    )
    max_steps: int | None = option(
        None,
        "stop after this many steps, which the schedule is stretched over",
        bound=AT_LEAST_1,
        group=LEARNING,
        preset=True,
    )
    classes: str | None = shared.classes()
    resize: int | None = shared.resize(bound=between(1, 1024))
    gray: bool = shared.gray()
    seed: int = option(
        0,
        "seed of the weights, the shuffles, the dropout and the held-out images",
        bound=Bound(lambda value: 0 <= value < 2**63, "from 0 to 2**63 - 1"),
        group=LEARNING,
    )
    device: str = shared.device()
    threads: int | None = shared.threads()
    precision: str = option(
        "fp32", "what is computed in, bf16 by autocast with float32 weights", choices=PRECISIONS, group=MACHINE
    )
    compile: bool = option(False, "compile the model with torch.compile", group=MACHINE)
    graph: str = option(
        "auto",
        "record a step once and replay it, which a GPU can; auto: on a GPU",
        choices=GRAPHS,
        group=MACHINE,
    )
    deterministic: bool = option(
        False, "only algorithms that give the same bits every time, on a GPU too", group=MACHINE
    )
    tune: str = option(
        "auto",
        "measure before the first step which plans of the fused layers are fastest; auto: for a long training on a GPU",
        choices=TUNES,
        group=MACHINE,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience and not self.val:
            raise UsageError(
                f"--patience is {self.patience} and --val is 0", "Nothing is held out to judge the epochs by"
            )
        if self.deterministic and self.tune == "on":
            raise UsageError("--tune on with --deterministic", "What a clock chooses may be another next time")

    @property
    def usual_epochs(self) -> int:
        """How often to go over a set of MNIST's size unless told."""
        return 1

    @property
    def starts_from_patches(self) -> bool:
        """Whether the first layer is made from the images, and does not learn."""
        return False

    @property
    def mean_batch(self) -> float:
        """Images of a step in the mean over an epoch."""
        return self.batch_size + GROWTH / 2 * ((self.first_batch or self.batch_size) - self.batch_size)

    def planned_epochs(self, images: int) -> int:
        """Returns how often to go over `images` training images: as told, or by preset and `LEAST_IMAGES`."""
        if self.epochs is not None:
            return self.epochs
        if self.max_steps is not None:
            return math.ceil(self.max_steps / math.ceil(images / self.mean_batch))
        return max(self.usual_epochs, min(MOST_EPOCHS, math.ceil(LEAST_IMAGES / images)))

    def val_count(self, images: int) -> int:
        """Returns how many of `images` to hold out. Raises UsageError when a share above 0 comes to none."""
        count = round(self.val * images) if self.val < 1 else int(self.val)
        if self.val and not count:
            raise UsageError(f"--val {self.val:g} holds out none of {images:,} images", fix="--val 0.1, or --val 0")
        return count

    def to_yaml(self) -> str:
        """Returns the configuration as the text of a file for `--config`."""
        import yaml  # here, for a training that keeps no run needs none

        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return yaml.safe_dump(plain, sort_keys=False)


@dataclass(frozen=True)
class TrainConfig(LearnConfig):
    """What is trained from random weights, on what, and how."""

    model: str = option("cnn2", "network", choices=tuple(PRESETS), group=MODEL)
    dropout: float = option(
        0.0, "share of hidden units dropped before the last layer", bound=BELOW_1, group=MODEL, preset=True
    )
    start: str = option(
        "random",
        "the first weights, those of patches a first layer made from the images, and fixed",
        choices=STARTS,
        group=MODEL,
        preset=True,
    )

    def preset(self) -> Mapping[str, Any]:
        """The model's, which may depend on the device. Who asks for epochs gets them whole: `max_steps` cuts none."""
        found = dict(PRESETS[self.model])
        if self.model in ON_GPU and device_type(self.device) != "cpu":
            found |= ON_GPU[self.model]
        return found if self.epochs is None else found | {"max_steps": None}

    @classmethod
    def default_words(cls, option: Field[Any]) -> str:
        """As of any options; what a preset may set is the model's."""
        return "the model's preset" if spec_of(option).preset else super().default_words(option)

    @property
    def usual_epochs(self) -> int:
        """The preset's."""
        return int(PRESETS[self.model].get("epochs", 1))

    @property
    def starts_from_patches(self) -> bool:
        """As `start` says."""
        return self.start == "patches"
