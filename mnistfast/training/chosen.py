"""By which plans a training computes its fused layers: the rule's, or those that were fastest before its first step.

What was chosen belongs to the training as its weights do: it is kept with its state, and when the training goes on it
holds again, whatever has been measured on the machine since.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

import convpool
from convpool import choices
from convpool.choices import Choices
from convpool.registry import AUTO, AUTO_REPLAYED
from convpool.tuning.calls import recorded
from mnistfast.options.learning import LearnConfig
from mnistfast.training.step import Learner, example

MOST = 30.0  # seconds of measuring
# With `auto` it may take this share of the training, of which one knows the number of steps, and how long at least one
# takes: seconds on an H200, of the small networks, called and replayed. A larger network's steps take longer, and so
# less is measured than would pay.
SHARE = 0.03
LEAST_STEP = {False: 3e-3, True: 2e-4}
LEAST = 1.0  # seconds: in less, the plans of one layer are hardly told apart


@dataclass(frozen=True)
class Chosen:
    """What was chosen.

    Attributes:
        choices: plans of calls; where there is none the rule decides.
        words: what was measured and for how long, for people; "" where nothing was to be.
    """

    choices: Choices = field(default_factory=Choices)
    words: str = ""

    def in_force(self) -> AbstractContextManager[None]:
        """Computes every call inside, of the whole process, by these plans and no others."""
        return choices.use(self.choices)

    def state(self) -> dict[str, Any]:
        """Returns plain data."""
        return {"choices": self.choices.to_json(), "words": self.words}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Chosen:
        """Returns what has that state. Raises KeyError, TypeError, ValueError: nothing has."""
        return cls(Choices.from_json(state["choices"]), str(state["words"]))


BY_RULE = Chosen()


def seconds_to_measure(config: LearnConfig, device: torch.device, steps: int, *, replayed: bool) -> float:
    """Returns for how long a training of `config` may measure before its first step; 0: it goes by the rule.

    With `auto` a CPU's goes by the rule, which is within a few percent of the best there and gives the same bits again.

    Args:
        config: what it is asked for.
        device: where it learns.
        steps: how many it has.
        replayed: whether they are to be.
    """
    if config.tune == "on":
        return MOST
    if config.tune == "off" or config.deterministic or device.type != "cuda":
        return 0.0
    share = min(MOST, SHARE * steps * LEAST_STEP[replayed])
    return share if share >= LEAST else 0.0


def choose(learner: Learner, batch: int, seconds: float, *, replayed: bool) -> Chosen:
    """Finds the fastest plans of steps of `batch` images: in the user's table, else by measuring for at most `seconds`.

    What is measured comes into the table. Calls of a batch of another size (rounded up to a power of two), those of
    validation, and of layers that begin to learn later, keep the rule. Nothing that learns or draws is changed.
    """
    images = example(learner, batch)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=learner.autocast):
        met = recorded(learner.model, (images,), AUTO_REPLAYED if replayed else AUTO)
        calls = [name for name, call in met.items() if len(call.plans()) > 1]
        table = choices.in_force(images.device).by_call
        known = Choices({name: table[name] for name in calls if name in table})
        if len(known) == len(calls):
            why = f"the table has all {len(calls)} calls" if calls else "no call has two plans"
            return Chosen(known, f"nothing measured, {why}")
        tuned = convpool.tune(learner.model, images, seconds=seconds, replayed=replayed)
    words = f"{len(tuned.choices)} of {len(calls)} calls measured in {tuned.seconds:.1f} s"
    excluded = [f"excluded: {plan}" for plan in tuned.excluded]
    return Chosen(known.merged(tuned.choices), "; ".join([words, *excluded]))
