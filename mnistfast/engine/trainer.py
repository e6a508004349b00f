"""The training loop: a step costs its forward, its backward and its optimiser, and nothing else that counts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnistfast.config import TrainConfig
from mnistfast.data.loader import DeviceData, epoch_order
from mnistfast.engine.schedules import learning_rate
from mnistfast.errors import DivergedError

# Every so many steps the losses are looked at, which waits for the device; in between nothing does.
CHECK_EVERY = 32
SCORING_BATCH = 1000  # images a step when nothing is learnt: larger gains nothing on CPUs, and it fits any GPU

Record = dict[str, Any]  # one line of metrics.jsonl


@dataclass(frozen=True)
class Plan:
    """How long a training is."""

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """All steps of all epochs."""
        return self.epochs * self.steps_per_epoch


def make_optimizer(config: TrainConfig, parameters: Any) -> torch.optim.Optimizer:
    """Returns the optimiser of `config`, in torch's fused form: one kernel a step instead of several a tensor."""
    if config.optimizer == "sgd":
        momentum = config.momentum
        return torch.optim.SGD(
            parameters, config.lr, momentum, weight_decay=config.weight_decay, nesterov=momentum > 0, fused=True
        )
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(parameters, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)


@torch.inference_mode()
def predict(model: nn.Module, data: DeviceData, batch_size: int = SCORING_BATCH) -> tuple[Tensor, Tensor]:
    """Returns logits float32 (N, classes) and labels int64 (N,) of all of `data`, in its order, on the CPU.

    Leaves `model` in eval mode.
    """
    model.eval()
    results = [(model(images), labels) for images, labels in data.batches(batch_size)]
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*results, strict=True))
    return logits, labels


class Trainer:
    """One training. `state_dict()` after any step, loaded into a new trainer, continues it bit for bit.

    What is random in it hangs on the seed and the epoch (the order of the images) or on torch's generators (dropout),
    whose state is part of `state_dict()`.

    Attributes:
        step: steps taken.
        best: the record of the best epoch so far: by validation accuracy, then by lower validation loss; without
            validation the last one.
        last_record: the record of the last epoch that ended.
        best_weights: the weights of the best epoch, on the CPU.
        seconds: time spent training, over all resumptions.
        last_good: where the last saved state is, for the message of a training that diverged.
    """

    def __init__(
        self,
        model: nn.Module,
        train: DeviceData,
        val: DeviceData | None,
        config: TrainConfig,
        epochs: int,
    ) -> None:
        """Prepares a training of `model`, which is on the device of the data.

        Args:
            model: gives logits.
            train: what it learns from.
            val: what chooses the best epoch; None is nothing.
            config: optimiser, schedule, batch size, seed and the like.
            epochs: how often to go over `train`.
        """
        self.model, self.train, self.val, self.config = model, train, val, config
        self.plan = Plan(epochs, math.ceil(len(train) / config.batch_size))
        self.optimizer = make_optimizer(config, model.parameters())
        self.device = next(model.parameters()).device
        self.losses = torch.zeros(self.plan.steps_per_epoch, device=self.device)  # a slot for each step of this epoch
        self.hits = torch.zeros(self.plan.steps_per_epoch, dtype=torch.int64, device=self.device)
        self.step = 0
        self.stale_epochs = 0
        self.best: Record | None = None
        self.last_record: Record | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.seconds, self._since = 0.0, time.perf_counter()
        self.recent = (math.nan, math.nan)
        self.last_good = "none yet"

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or patience ran out."""
        patience = self.config.patience
        return self.step >= self.plan.steps or (0 < patience <= self.stale_epochs)

    def run(self) -> Iterator[Record | None]:
        """Trains, and yields after every step: the epoch's record when the step ended one, else None.

        Raises:
            DivergedError: the loss, or a weight about to be saved, is not a finite number.
        """
        self._since = time.perf_counter()
        while not self.finished:
            epoch, done = divmod(self.step, self.plan.steps_per_epoch)
            order = epoch_order(len(self.train), self.config.seed, epoch)
            started = time.perf_counter()
            self.model.train()
            for slot, (images, labels) in enumerate(self.train.batches(self.config.batch_size, order, done), done):
                self._learn(images, labels, slot)
                if slot + 1 < self.plan.steps_per_epoch:
                    yield None
            self._check_losses(self.plan.steps_per_epoch)
            seconds = time.perf_counter() - started  # after the check, which waits for the device
            record = self._close_epoch(epoch)
            self._count_time()
            learnt = len(self.train) - done * self.config.batch_size
            yield record | {"images_per_s": round(learnt / seconds), "seconds": round(self.seconds, 3)}

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def _learn(self, images: Tensor, labels: Tensor, slot: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.losses[slot] = loss.detach()
        self.hits[slot] = (logits.detach().argmax(1) == labels).sum()
        self.step += 1
        if (slot + 1) % CHECK_EVERY == 0:
            self._check_losses(slot + 1)
            self.recent = self._epoch_means(slot + 1)

    @property
    def images_seen(self) -> int:
        """Images learnt from so far, over all epochs."""
        epoch, done = divmod(self.step, self.plan.steps_per_epoch)
        return epoch * len(self.train) + done * self.config.batch_size

    def rate(self, step: int) -> float:
        """Returns the learning rate of `step`."""
        return learning_rate(self.config.schedule, step, self.plan.steps, self.config.lr)

    def _close_epoch(self, epoch: int) -> Record:
        self.recent = loss, accuracy = self._epoch_means(self.plan.steps_per_epoch)
        record: Record = {"epoch": epoch + 1, "step": self.step, "lr": self.rate(self.step - 1)}
        record |= {"loss": loss, "accuracy": accuracy}
        if self.val is not None:
            logits, labels = predict(self.model, self.val)
            record["val_loss"] = F.cross_entropy(logits.double(), labels).item()
            record["val_accuracy"] = (logits.argmax(1) == labels).double().mean().item()
        self.last_record = record
        if self.best is None or _rank(record) > _rank(self.best) or self.val is None:
            self.best, self.stale_epochs = record, 0
            self.best_weights = {
                name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()
            }
        else:
            self.stale_epochs += 1
        return record

    def _epoch_means(self, steps: int) -> tuple[float, float]:
        """Returns loss and accuracy over the first `steps` steps of this epoch; every image counts the same."""
        sizes = torch.full((steps,), self.config.batch_size, dtype=torch.float64)
        if steps == self.plan.steps_per_epoch:
            sizes[-1] = len(self.train) - (steps - 1) * self.config.batch_size
        loss = (self.losses[:steps].cpu().double() * sizes).sum() / sizes.sum()
        return loss.item(), (self.hits[:steps].sum().cpu() / sizes.sum()).item()

    def _check_losses(self, steps: int) -> None:
        bad = (~torch.isfinite(self.losses[:steps])).nonzero()
        if len(bad):
            slot = int(bad[0])
            step = self.step - steps + slot
            self._diverged(f"the loss became {self.losses[slot].item()} at step {step + 1}", step)

    def _diverged(self, what: str, step: int) -> None:
        raise DivergedError(
            f"{what} (learning rate {self.rate(step):.3g})",
            f"Last good state: {self.last_good}",
            f"--lr {self.config.lr / 4:.2g}",
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns plain tensors, numbers and dicts: the whole state between two steps.

        Raises:
            DivergedError: the state is not worth keeping.
        """
        done = self.step % self.plan.steps_per_epoch
        self._check_losses(done)
        if not all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters()):
            self._diverged(f"a weight is not a finite number after step {self.step}", self.step - 1)
        self._count_time()
        return {
            "step": self.step,
            "stale_epochs": self.stale_epochs,
            "seconds": self.seconds,
            "best": self.best,
            "last_record": self.last_record,
            "best_weights": self.best_weights,
            "losses": self.losses[:done].cpu(),
            "hits": self.hits[:done].cpu(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned for the same model, data and configuration."""
        self.step, self.stale_epochs, self.seconds = state["step"], state["stale_epochs"], state["seconds"]
        self.best, self.best_weights = state["best"], state["best_weights"]
        self.last_record = state["last_record"]
        done = len(state["losses"])
        self.losses[:done], self.hits[:done] = state["losses"], state["hits"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


def _rank(record: Record) -> tuple[float, float]:
    return record.get("val_accuracy", 0.0), -record.get("val_loss", 0.0)
