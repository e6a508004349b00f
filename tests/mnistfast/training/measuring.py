"""Stands for `convpool.tune`, without a clock: all calls that it meets get the plan that it is told."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from convpool import choices
from convpool.choices import Choice, Choices
from convpool.tuning import Tuned
from convpool.tuning.calls import recorded


def choosing(plan: str, calls: Iterable[str]) -> Choices:
    """Returns a table in which all of these calls have this plan."""
    return Choices({call: Choice(plan, {plan: 1e-3}, "2026-11-27", "a machine") for call in calls})


@dataclass
class Measuring:
    """Takes `plan` for every call.

    Attributes:
        examples: what it was given.
        asked: what it was told.
        during: is called in the meantime.
    """

    plan: str = "torch/plain"
    examples: list[Tensor] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    during: Callable[[], None] = lambda: None

    def __call__(self, model: nn.Module, example: Tensor, **options: Any) -> Tuned:
        self.examples.append(example)
        self.asked.append(options)
        self.during()
        found = choosing(self.plan, recorded(model, (example,), "auto"))
        if options.get("store", True):
            choices.keep(example.device, found)
        return Tuned(found, (), 1.5)
