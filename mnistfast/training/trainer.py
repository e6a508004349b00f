"""The training loop: a step costs its forward, its backward and its optimiser, and nothing else that counts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnistfast.data.augment import AUGMENTATIONS, Maps, warp
from mnistfast.data.loader import DeviceData, EmbeddedData, epoch_order
from mnistfast.errors import DivergedError
from mnistfast.models.adapters import Tuning
from mnistfast.models.dropout import share_batch
from mnistfast.models.zoo import Classifier
from mnistfast.options.learning import LearnConfig
from mnistfast.training.ahead import Ahead, Drawn, Replay
from mnistfast.training.average import Average
from mnistfast.training.muon import Muon
from mnistfast.training.plan import Plan
from mnistfast.training.ranks import Ranks
from mnistfast.training.schedules import learning_rate
from mnistfast.training.start import IMAGES, start_from_patches

# Every so many steps the losses are looked at, which waits for the device; in between nothing does.
CHECK_EVERY = 32

Record = dict[str, Any]  # one line of metrics.jsonl


def make_optimizer(config: LearnConfig, parameters: Any) -> torch.optim.Optimizer:
    """Returns the optimiser of `config`, in torch's fused form: one kernel a step instead of several a tensor."""
    if config.optimizer == "sgd":
        momentum = config.momentum
        return torch.optim.SGD(
            parameters, config.lr, momentum, weight_decay=config.weight_decay, nesterov=momentum > 0, fused=True
        )
    if config.optimizer == "muon":
        return Muon(parameters, config.lr, config.betas, config.momentum, config.weight_decay)
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(parameters, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, count: int) -> Tensor:
    """Returns the share that some images have in the mean cross-entropy of a batch.

    Against probabilities: with smoothing, torch's own way from class numbers takes nine small operations backwards
    instead of four. With the gradients dropped below, a step of `cnn2` went from 9.8 to 9.3 ms on two threads.

    Args:
        logits: float (N, classes).
        labels: int64 (N,).
        smoothing: share of the probability that is spread evenly over the classes.
        count: images of the whole batch.
    """
    rest = smoothing / logits.shape[1]
    wanted = torch.full_like(logits, rest / count, dtype=torch.float32, requires_grad=False)
    wanted.scatter_(1, labels[:, None], (1 - smoothing + rest) / count)
    return F.cross_entropy(logits.float(), wanted, reduction="sum")


@torch.inference_mode()
def predict(model: Classifier, data: DeviceData, batch_size: int | None = None, head: int = 0) -> tuple[Tensor, Tensor]:
    """Returns logits float32 (N, classes) and labels int64 (N,) of all of `data`, in its order, on the CPU.

    Leaves `model` in eval mode.

    Args:
        model: what answers.
        data: images, or embeddings of this model's body.
        batch_size: images a step; None: the model's `scoring_batch`.
        head: which of the model's heads answers.
    """
    model.eval()
    batches = data.batches(batch_size or model.scoring_batch)
    results = [(model(images, head), labels) for images, labels in batches]
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*results, strict=True))
    return logits, labels


@torch.no_grad()
def embed(model: Classifier, data: DeviceData) -> EmbeddedData:
    """Returns what the body of `model`, in eval mode, makes of `data`: with it the model gives the same logits."""
    model.eval()
    embedded = [(model.embed(images), labels) for images, labels in data.batches(model.scoring_batch)]
    return EmbeddedData(*(torch.cat(parts) for parts in zip(*embedded, strict=True)))


class Trainer:
    """One training. `state_dict()` after any step, loaded into a new trainer, continues it bit for bit.

    What is random in it hangs on the seed and the epoch or the step (the order of the images, their augmentation) or on
    torch's generators (dropout), whose state is part of `state_dict()`.

    Several processes run it in step, each on its slice of every batch: `run` and `state_dict` exchange figures, so all
    of them must call these alike.

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
        model: Classifier,
        train: DeviceData,
        val: DeviceData | None,
        config: LearnConfig,
        epochs: int,
        ranks: Ranks = Ranks(),  # noqa: B008  # frozen: a team of one
        tuning: Tuning = Tuning(),  # noqa: B008  # has no state
        replay: Replay | None = None,
    ) -> None:
        """Prepares a training of `model`, which is on the device of the data.

        Args:
            model: gives logits.
            train: what it learns from.
            val: what chooses the best epoch; None is nothing.
            config: optimiser, schedule, batch size, seed and the like.
            epochs: how often to go over `train`.
            ranks: which of the processes that train together this one is.
            tuning: which of the model's parameters learn.
            replay: samples of an earlier task to learn from as well; their loss is added to that of `train`.
        """
        self.model, self.train, self.val, self.config, self.ranks = model, train, val, config, ranks
        self.tuning, self.replay = tuning, replay
        self.plan = Plan(epochs, len(train), config)
        self.augmentation = AUGMENTATIONS[config.augment]
        self.ahead = Ahead(config, self.plan, replay, model)
        if config.starts_from_patches:
            start_from_patches(model, train.gather(epoch_order(len(train), config.seed, 0)[:IMAGES])[0])
        self.average = Average(model, config.ema, self.plan.steps) if config.ema else None
        together = ranks.team(model)
        self.learner = torch.compile(together) if config.compile else together
        self.optimizer = make_optimizer(config, tuning.groups(model))
        self.device = next(model.parameters()).device
        self.losses = torch.zeros(self.plan.steps_per_epoch, device=self.device)  # a slot for each step of this epoch
        self.hits = torch.zeros(self.plan.steps_per_epoch, dtype=torch.int64, device=self.device)
        self._answers: list[tuple[Tensor, Tensor]] = []  # logits and labels of the steps whose hits are not yet counted
        # Over the processes gradients are averaged, while each one's loss is its share of the batch's.
        self.upstream = torch.tensor(float(ranks.world), device=self.device)
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
            steps = self.plan.steps_in(epoch)
            order = epoch_order(len(self.train), self.config.seed, epoch).to(self.device)  # once, not once a batch
            started = time.perf_counter()
            self.tuning.begin_epoch(self.model, epoch)
            bounds = self.plan.bounds
            for slot in range(done, steps):
                self._learn(order[bounds[slot] : bounds[slot + 1]], slot)
                if slot + 1 < steps:
                    yield None
            self._check_losses(steps)
            seconds = time.perf_counter() - started  # after the check, which waits for the device
            record = self._close_epoch(epoch, steps)
            self._count_time()
            learnt = bounds[steps] - bounds[done]
            yield record | {"images_per_s": round(learnt / seconds), "seconds": round(self.seconds, 3)}

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def _learn(self, index: Tensor, slot: int) -> None:
        """Takes one step with the images at `index`: the whole batch's, of which this process uses its slice."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step) * group["lr_scale"]
            for parameter in group["params"]:
                parameter.grad = None  # what optimizer.zero_grad does, less its bookkeeping
        count, rows = len(index), self.ranks.share(len(index))
        drawn = self.ahead.take(self.step)
        images, labels = self._samples(self.train, index, rows, drawn.moves)
        if self.ranks.world > 1:
            share_batch(self.model, count, rows)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = self.learner(images)
        loss = cross_entropy(logits, labels, self.config.label_smoothing, count)
        if self.replay:
            loss = loss + self._replayed(self.replay, drawn, rows)
        loss.backward(self.upstream)
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        if self.average:
            self.average.update(self.model)
        self.losses[slot] = loss.detach()
        self._answers.append((logits.detach(), labels))
        self.step += 1
        if (slot + 1) % CHECK_EVERY == 0:
            self.ahead.reach(self.step)  # while the device works, which the look at the losses waits for
            self._check_losses(slot + 1)
            self.recent = self._epoch_means(slot + 1)

    def _samples(self, data: DeviceData, index: Tensor, rows: slice, moves: Maps | None) -> tuple[Tensor, Tensor]:
        """Returns the images of `data` at this process' `rows` of `index`, moved, and their labels."""
        images, labels = data.gather(index[rows])
        return (warp(images, self.augmentation, moves[rows]) if moves else images), labels

    def _replayed(self, replay: Replay, drawn: Drawn, rows: slice) -> Tensor:
        """Returns this process' share in the mean loss of the old samples of a step."""
        assert drawn.old is not None
        images, labels = self._samples(replay.data, drawn.old, rows, drawn.moves)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = self.learner(images, replay.head)
        return cross_entropy(logits, labels, self.config.label_smoothing, len(drawn.old))

    @property
    def judged(self) -> Classifier:
        """The model whose weights are judged and kept: the average of the steps where there is one."""
        return self.average.module if self.average else self.model

    @property
    def images_seen(self) -> int:
        """Images learnt from so far, over all epochs."""
        epoch, done = divmod(self.step, self.plan.steps_per_epoch)
        return epoch * len(self.train) + self.plan.bounds[done]

    def rate(self, step: int) -> float:
        """Returns the learning rate of `step`."""
        return learning_rate(self.config.schedule, step, self.plan.steps, self.config.lr)

    def _close_epoch(self, epoch: int, steps: int) -> Record:
        self.recent = loss, accuracy = self._epoch_means(steps)
        record: Record = {"epoch": epoch + 1, "step": self.step, "lr": self.rate(self.step - 1)}
        record |= {"loss": loss, "accuracy": accuracy}
        if self.val is not None:
            record |= self.ranks.of_first(self._judge)  # with it goes the decision to stop early
        self.last_record = record
        if self.best is None or _rank(record) > _rank(self.best) or self.val is None:
            self.best, self.stale_epochs = record, 0
            self.best_weights = {
                name: tensor.detach().cpu().clone() for name, tensor in self.judged.state_dict().items()
            }
        else:
            self.stale_epochs += 1
        return record

    def _judge(self) -> Record:
        assert self.val is not None
        logits, labels = predict(self.judged, self.val)
        return {
            "val_loss": F.cross_entropy(logits.double(), labels).item(),
            "val_accuracy": (logits.argmax(1) == labels).double().mean().item(),
        }

    def _epoch_means(self, steps: int) -> tuple[float, float]:
        """Returns loss and accuracy over the first `steps` steps of this epoch; every image counts the same."""
        self._count_hits(steps)
        bounds = torch.tensor(self.plan.bounds[: steps + 1], dtype=torch.float64)
        sizes, images = bounds.diff(), self.plan.bounds[steps]
        loss = (self.ranks.total(self.losses[:steps]).cpu().double() * sizes).sum() / images
        return loss.item(), self.ranks.total(self.hits[:steps]).sum().item() / images

    def _count_hits(self, steps: int) -> None:
        """Fills in the hits of the last of `steps` steps, for all at once: a step's four operations took it 0.2 ms."""
        if self._answers:
            logits, labels = zip(*self._answers, strict=True)
            right = torch.cat(logits).argmax(1) == torch.cat(labels)
            counts = [part.sum() for part in right.split([len(some) for some in labels])]
            self.hits[steps - len(counts) : steps] = torch.stack(counts)
            self._answers.clear()

    def _check_losses(self, steps: int) -> None:
        if not steps:
            return
        losses = self.ranks.total(self.losses[:steps])
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            slot = int(bad[0])
            step = self.step - steps + slot
            self._diverged(f"the loss became {losses[slot].item()} at step {step + 1}", step)

    def _diverged(self, what: str, step: int) -> None:
        raise DivergedError(
            f"{what} (learning rate {self.rate(step):.3g}, {self.config.precision})",
            f"Last good state: {self.last_good}",
            f"--lr {self.config.lr / 4:.2g}{' or --precision fp32' * (self.config.precision != 'fp32')}",
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns plain tensors, numbers and dicts: the whole state between two steps.

        Raises:
            DivergedError: the state is not worth keeping.
        """
        done = self.step % self.plan.steps_per_epoch
        self._check_losses(done)
        self._count_hits(done)
        if not all(bool(torch.isfinite(weight).all()) for weight in self.model.state_dict().values()):
            self._diverged(f"a weight is not a finite number after step {self.step}", self.step - 1)
        self._count_time()
        return {
            "step": self.step,
            "stale_epochs": self.stale_epochs,
            "seconds": self.seconds,
            "best": self.best,
            "last_record": self.last_record,
            "best_weights": self.best_weights,
            "losses": self.ranks.total(self.losses[:done]).cpu(),
            "hits": self.ranks.total(self.hits[:done]).cpu(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned for the same model, data and configuration.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError, ...: it is no such state.
        """
        self._refuse_impossible(state)
        self.step, self.stale_epochs, self.seconds = state["step"], state["stale_epochs"], state["seconds"]
        self.best, self.best_weights = state["best"], state["best_weights"]
        self.last_record = state["last_record"]
        done = len(state["losses"])
        # the sums over all processes: they go on in the first one
        self.losses[:done], self.hits[:done] = (
            (state["losses"], state["hits"]) if self.ranks.first else (torch.zeros(()), torch.zeros(()))
        )
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        _align(self.optimizer)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def _refuse_impossible(self, state: dict[str, Any]) -> None:
        """Raises ValueError where `state` has what `state_dict` never returns, and what nobody notices later."""
        if (
            not 0 <= state["step"] <= self.plan.steps
            or len(state["losses"]) != state["step"] % self.plan.steps_per_epoch
        ):
            raise ValueError(f"its step {state['step']} is none of this run")
        for record in (state["best"], state["last_record"]):
            if record is not None and not all(isinstance(value, (int, float)) for value in record.values()):
                raise ValueError("its record of an epoch has other values than numbers")
        own = {name: weight.shape for name, weight in self.judged.state_dict().items()}
        if state["best"] and {name: weight.shape for name, weight in state["best_weights"].items()} != own:
            raise ValueError("its best weights are of another model")
        for name, weight in [*state["model"].items(), *state["best_weights"].items()]:
            if not weight.isfinite().all():
                raise ValueError(f"a value of {name} is not a finite number")


def _align(optimizer: torch.optim.Optimizer) -> None:
    """Lays what the optimiser keeps of a parameter as the parameter lies, which another device may have had otherwise.

    Fused kernels walk through both in the order of memory, and would take one weight's momentum for another's.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def _rank(record: Record) -> tuple[float, float]:
    return record.get("val_accuracy", 0.0), -record.get("val_loss", 0.0)
