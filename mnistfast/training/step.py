"""One step of a training: a function of what learns, which images it learns from, what is drawn for them and the rate.

It costs its forward, its backward and its optimiser, and nothing else that counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mnistfast.data.augment import AUGMENTATIONS, Augmentation, Maps, warp
from mnistfast.data.loader import DeviceData
from mnistfast.models.adapters import Tuning
from mnistfast.models.dropout import share_batch
from mnistfast.models.zoo import Classifier
from mnistfast.options.learning import LearnConfig
from mnistfast.training.ahead import Drawn, Replay
from mnistfast.training.average import Average
from mnistfast.training.loss import cross_entropy
from mnistfast.training.optimizers import make_optimizer
from mnistfast.training.ranks import Ranks


@dataclass(frozen=True)
class Learner:
    """What a step works with. It changes the model's weights, the optimiser's state and the average, and nothing else.

    Attributes:
        model: what learns.
        network: the model as it is called: compiled, and one of several processes' where it is.
        optimizer: each of its groups has an `lr_scale`, which the rate is multiplied with.
        average: of the weights over the steps, None where there is none.
        train: what is learnt from.
        replay: samples of an earlier task to learn from as well; their loss is added to that of `train`.
        augmentation: how images are moved.
        ranks: which of the processes that train together this one is.
        smoothing: share of the target spread over all classes.
        clip: largest norm of a gradient, 0 for any.
        autocast: whether forward passes compute in bfloat16.
        upstream: the gradient of the loss: over the processes gradients are averaged, while each one's loss is its
            share of the batch's.
    """

    model: Classifier
    network: Callable[..., Any]
    optimizer: torch.optim.Optimizer
    average: Average | None
    train: DeviceData
    replay: Replay | None
    augmentation: Augmentation
    ranks: Ranks
    smoothing: float
    clip: float
    autocast: bool
    upstream: Tensor

    @property
    def judged(self) -> Classifier:
        """The model whose weights are judged and kept: the average of the steps where there is one."""
        return self.average.module if self.average else self.model


def make_learner(
    model: Classifier,
    train: DeviceData,
    config: LearnConfig,
    steps: int,
    ranks: Ranks,
    tuning: Tuning,
    replay: Replay | None,
) -> Learner:
    """Returns what at most so many `steps` of a training of `model` by `config` work with; see `Trainer`."""
    average = Average(model, config.ema, steps) if config.ema else None
    together = ranks.team(model)
    return Learner(
        model,
        torch.compile(together) if config.compile else together,
        make_optimizer(config, tuning.groups(model)),
        average,
        train,
        replay,
        AUGMENTATIONS[config.augment],
        ranks,
        config.label_smoothing,
        config.clip,
        config.precision == "bf16",
        torch.tensor(float(ranks.world), device=next(model.parameters()).device),
    )


def take_step(learner: Learner, index: Tensor, drawn: Drawn, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Takes one step.

    Args:
        learner: what learns, from what and how.
        index: int64 (N,), the samples of the whole batch, of which this process uses its slice.
        drawn: what is random in them.
        rate: the learning rate.

    Returns:
        This process' share in the batch's mean loss, float32 (); logits (n, classes) and labels (n,) of its slice.
    """
    for group in learner.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
        for parameter in group["params"]:
            parameter.grad = None  # what optimizer.zero_grad does, less its bookkeeping
    if learner.ranks.world > 1:
        share_batch(learner.model, len(index), learner.ranks.share(len(index)))
    loss, logits, labels = _forward(learner, learner.train, index, drawn.moves, 0)
    if learner.replay:
        assert drawn.old is not None
        loss = loss + _forward(learner, learner.replay.data, drawn.old, drawn.moves, learner.replay.head)[0]
    loss.backward(learner.upstream)
    if learner.clip:
        nn.utils.clip_grad_norm_(learner.model.parameters(), learner.clip)
    learner.optimizer.step()
    if learner.average:
        learner.average.update(learner.model)
    return loss.detach(), logits.detach(), labels


def _forward(
    learner: Learner, data: DeviceData, index: Tensor, moves: Maps | None, head: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns loss, logits and labels of this process' slice of the samples of `data` at `index`, moved, at `head`."""
    rows = learner.ranks.share(len(index))
    images, labels = data.gather(index[rows])
    if moves:
        images = warp(images, learner.augmentation, moves[rows])
    with torch.autocast(images.device.type, torch.bfloat16, enabled=learner.autocast):
        logits = learner.network(images, head)
    return cross_entropy(logits, labels, learner.smoothing, len(index)), logits, labels
