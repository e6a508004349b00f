"""One step of a training: a function of what learns and of what lies on the device, and so the same at every call.

Which images it learns from, what is random in them and the learning rate are found by the cursor, which the step moves
on. So a GPU can record one and replay it. It costs its forward, its backward and its optimiser, and nothing else that
counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mnistfast.data.augment import AUGMENTATIONS, Augmentation, warp
from mnistfast.data.loader import DeviceData
from mnistfast.models.adapters import Tuning
from mnistfast.models.dropout import share_batch
from mnistfast.models.zoo import Classifier
from mnistfast.ops.batch import Rates
from mnistfast.ops.cursor import Cursor
from mnistfast.ops.loss import learn_from
from mnistfast.options.learning import LearnConfig
from mnistfast.training.average import Average
from mnistfast.training.epoch import Epoch, Replay
from mnistfast.training.optimizers import make_optimizer, make_rates, tie
from mnistfast.training.plan import Plan
from mnistfast.training.ranks import Ranks
from mnistfast.training.tally import Tally


@dataclass(frozen=True)
class Learner:
    """What a step works with. It changes `state()` and draws from torch's generators, and nothing else.

    Attributes:
        model: what learns.
        network: the model as it is called: compiled, and one of several processes' where it is.
        optimizer: tied to `rates`.
        rates: learning rates, of all steps and of the present one.
        cursor: which step that is.
        average: of the weights over the steps, None where there is none.
        train: what is learnt from.
        replay: samples of an earlier task to learn from as well; their loss is added to that of `train`.
        epoch: which samples in which order, and what is random in them.
        tally: what the steps come to.
        augmentation: how images are moved.
        ranks: which of the processes that train together this one is.
        smoothing: share of the target spread over all classes.
        clip: largest norm of a gradient, 0 for any.
        autocast: whether forward passes compute in bfloat16.
    """

    model: Classifier
    network: Callable[..., Any]
    optimizer: torch.optim.Optimizer
    rates: Rates
    cursor: Cursor
    average: Average | None
    train: DeviceData
    replay: Replay | None
    epoch: Epoch
    tally: Tally
    augmentation: Augmentation
    ranks: Ranks
    smoothing: float
    clip: float
    autocast: bool

    @property
    def judged(self) -> Classifier:
        """The model whose weights are judged and kept: the average of the steps where there is one."""
        return self.average.module if self.average else self.model

    def state(self) -> Iterator[Tensor]:
        """Yields every tensor that a step changes."""
        for module in (self.model, self.average):
            if module is not None:
                yield from module.parameters()
                yield from module.buffers()
        for kept in self.optimizer.state.values():
            yield from (value for value in kept.values() if isinstance(value, Tensor))
        yield from (self.cursor.coming, self.cursor.now, self.rates.lr, self.tally.losses, self.tally.answers)


def make_learner(
    model: Classifier,
    train: DeviceData,
    config: LearnConfig,
    plan: Plan,
    ranks: Ranks,
    tuning: Tuning,
    replay: Replay | None,
) -> Learner:
    """Returns what the steps of `plan`, a training of `model` by `config`, work with; see `Trainer`."""
    device = next(model.parameters()).device
    average = Average(model, config.ema, plan.steps) if config.ema else None
    together = ranks.team(model)
    optimizer = make_optimizer(config, tuning.groups(model))
    rates = make_rates(config, optimizer, plan.steps, device)
    tie(optimizer, rates)
    return Learner(
        model,
        torch.compile(together) if config.compile else together,
        optimizer,
        rates,
        Cursor.begin(device),
        average,
        train,
        replay,
        Epoch(config, plan, replay, model),
        Tally(plan, ranks, device),
        AUGMENTATIONS[config.augment],
        ranks,
        config.label_smoothing,
        config.clip,
        config.precision == "bf16",
    )


def example(learner: Learner, batch: int) -> Tensor:
    """Returns images such as a step of `batch` images gives to the network, the largest slice of them where several
    processes share it: of their number, type and strides."""
    images = learner.train.like_taken(math.ceil(batch / learner.ranks.world))
    moves = learner.epoch.moves
    if moves is None:
        return images
    return warp(images, learner.augmentation, moves.at(torch.arange(len(images), device=images.device)))


def take_step(learner: Learner, batch: int) -> None:
    """Takes the step that the cursor points to, and moves the cursor on.

    Args:
        learner: what learns, from what and how.
        batch: images of the whole batch, of which this process uses its slice.
    """
    for group in learner.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None  # what optimizer.zero_grad does, less its bookkeeping
    if learner.ranks.world > 1:
        share_batch(learner.model, batch, learner.ranks.share(batch))
    new, old = learner.train, learner.replay
    judged = [_judge(learner, new, learner.epoch.order, 0, batch, first=True, last=old is None)]
    if old is not None:
        assert learner.epoch.old is not None
        judged.append(_judge(learner, old.data, learner.epoch.old, old.head, batch, first=False, last=True))
    learning = [(logits, gradient) for logits, gradient in judged if logits.requires_grad]  # an old head may not yet
    torch.autograd.backward([logits for logits, _ in learning], [gradient for _, gradient in learning])
    if learner.clip:
        nn.utils.clip_grad_norm_(learner.model.parameters(), learner.clip)
    learner.optimizer.step()
    if learner.average:
        learner.average.update(learner.model)


def _judge(
    learner: Learner, data: DeviceData, order: Tensor, head: int, batch: int, *, first: bool, last: bool
) -> tuple[Tensor, Tensor]:
    """Returns logits of this process' slice of the samples of `data` that come next in `order`, at `head`, and the
    gradient of their loss; notes losses and, of the `first` data, answers; the `last` data move the cursor."""
    rows = learner.ranks.share(batch)
    cursor, tally, moves = learner.cursor, learner.tally, learner.epoch.moves
    images, labels = data.take(order, cursor, learner.rates, rows)
    if moves:
        images = warp(images, learner.augmentation, moves.at(cursor.positions(rows)))
    with torch.autocast(images.device.type, torch.bfloat16, enabled=learner.autocast):
        logits = learner.network(images, head)
    gradient = learn_from(
        logits.detach(),
        labels,
        cursor,
        tally.losses,
        tally.answers if first else None,
        rows_start=rows.start,
        smoothing=learner.smoothing,
        batch=batch,
        scale=learner.ranks.world,  # gradients are averaged over the processes, each of which has its share of the loss
        advance=last,
        add=not first,
    )
    return logits, gradient
