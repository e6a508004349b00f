"""FinetuneConfig: what is made good at a new task, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import Any

from mnistfast.errors import UsageError
from mnistfast.options import methods
from mnistfast.options.bounds import AT_LEAST_1, POSITIVE, between
from mnistfast.options.fields import option
from mnistfast.options.learning import LearnConfig
from mnistfast.options.shared import DATA, LEARNING, MODEL

# What a fine-tuning has in the place of the defaults; `epochs` is for a set of MNIST's size.
USUAL: Mapping[str, Any] = {"batch_size": 64, "lr": 2e-3, "label_smoothing": 0.1, "epochs": 5}
# Ten images of each digit, held-out images to choose by, means of 8 draws: batches of 64 at 2e-3 come to the same
# accuracy, but to 63 % at the old digits instead of 99 %. Nothing is held out of a few images.
FEW_SHOTS: Mapping[str, Any] = {"batch_size": 16, "lr": 1e-3, "val": 0.0}
BACKBONES = ("vgg16", "resnet50")
REPLAYED = 0.1  # of the old training images, where --replay names no share


@dataclass(frozen=True)
class FinetuneConfig(LearnConfig):
    """What is made good at a new task, how, and what it must not forget."""

    data: str | None = option(None, "name or path of what to learn", group=DATA)  # no set is learnt unless it is named

    source: str = option(
        "", f"a run's folder, a checkpoint, or one of {', '.join(BACKBONES)}", flags=("--from",), group=MODEL
    )
    method: str = option(methods.DEFAULT, methods.help_text(), group=LEARNING)
    lr_mult: float = option(
        1.0, "the body's learning rate is this many times the head's", bound=POSITIVE, group=LEARNING
    )
    unfreeze_at: str | None = option(
        None,
        "epochs, as 2,3,4, at each of which one more layer below the head begins to learn, at the last one the rest",
        group=LEARNING,
    )
    drop_old_head: bool = option(
        False, "do not keep the old head beside the new one where the classes differ", group=MODEL
    )
    replay: str | None = option(
        None,
        f"OLD[:fraction]: learn from that share ({REPLAYED}) of these old training images too, so as not to forget "
        "them",
        group=DATA,
    )
    old_data: str | None = option(
        None, "what the source was trained on", usual="what its run says, or --replay's", group=DATA
    )
    shots: int | None = option(None, "learn from so many images of each class only", bound=AT_LEAST_1, group=DATA)
    repeats: int = option(
        1, "draw so many times (images, head, order), and give mean and interval", bound=AT_LEAST_1, group=LEARNING
    )
    weights: str | None = option(
        None,
        "of a backbone: a file of torchvision's, or random",
        usual="torchvision's, else random, which is said",
        group=MODEL,
    )
    side: int = option(64, "of a backbone: pixels that it sees the images with", bound=between(32, 1024), group=MODEL)
    hidden: int | None = option(
        None, "of a backbone: units of a layer before the last one", usual="none", bound=AT_LEAST_1, group=MODEL
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source:
            names = ", ".join(BACKBONES)
            raise UsageError("--from is missing", f"It takes a run's folder, a checkpoint, or one of {names}")
        if self.data is None:
            raise UsageError("--data is missing", "It says what to learn")
        method, _ = self.how
        at = self.unfrozen_at
        if any(low >= high for low, high in zip((0, *at), at, strict=False)):
            raise UsageError(f"--unfreeze-at is {self.unfreeze_at}", "It takes rising epochs from 1, as 2,3,4")
        if not 0 < self.replayed[1] <= 1:
            raise UsageError(f"--replay is {self.replay}", "It must be OLD:fraction, up to 1")
        if self.replay and self.drop_old_head:
            raise UsageError("--replay with --drop-old-head", "It drops the head that old samples are for")
        if self.replay and not method.can_forget:
            raise UsageError(f"--replay with --method {method.name}", "It has nothing to forget")
        if self.shots and self.limit:
            raise UsageError("--shots and --limit exclude each other")
        for name in ("weights", "hidden"):
            if getattr(self, name) is not None and self.source not in BACKBONES:
                raise UsageError(f"--{name} is for a backbone", f"--from is {self.source}", f"--from {BACKBONES[0]}")

    def preset(self) -> Mapping[str, Any]:
        """What suits fine-tuning, and otherwise for a few images."""
        return {**USUAL, **(FEW_SHOTS if self.shots else {})}

    @classmethod
    def default_words(cls, option: Field[Any]) -> str:
        """As of any options; what depends on --shots is told for both."""
        if option.name == "epochs":
            return f"{USUAL['epochs']}, more for a small set"
        words = str(USUAL[option.name]) if option.name in USUAL else super().default_words(option)
        return f"{words}, {FEW_SHOTS[option.name]:g} for --shots" if option.name in FEW_SHOTS else words

    @property
    def usual_epochs(self) -> int:
        """For a set of MNIST's size."""
        return int(USUAL["epochs"])

    @property
    def how(self) -> tuple[methods.Method, int]:
        """The method and its number, 0 where it has none."""
        return methods.method_of(self.method)

    @property
    def unfrozen_at(self) -> tuple[int, ...]:
        """The epochs of `unfreeze_at`; a part that is no number is 0."""
        parts = self.unfreeze_at.split(",") if self.unfreeze_at else []
        return tuple(int(part) if part.strip().isdecimal() else 0 for part in parts)

    @property
    def replayed(self) -> tuple[str, float]:
        """The old data and the share of it that is replayed."""
        name, _, share = (self.replay or "").rpartition(":")
        try:
            return (name, float(share)) if name else (share, REPLAYED)
        except ValueError:  # the colon belongs to a path
            return self.replay or "", REPLAYED
