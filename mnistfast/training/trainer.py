"""The loop over the epochs: what is learnt from when, which epoch was the best, when it ends, and how it goes on."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mnistfast.data.loader import DeviceData, epoch_order
from mnistfast.errors import DivergedError
from mnistfast.models.adapters import Tuning
from mnistfast.models.zoo import Classifier
from mnistfast.options.learning import LearnConfig
from mnistfast.training.chosen import BY_RULE, Chosen, choose
from mnistfast.training.epoch import Replay
from mnistfast.training.inference import predict
from mnistfast.training.launching import make_launcher, rng_state, set_rng_state
from mnistfast.training.optimizers import saved, tie
from mnistfast.training.plan import Plan
from mnistfast.training.ranks import Ranks
from mnistfast.training.schedules import learning_rate
from mnistfast.training.start import IMAGES, start_from_patches
from mnistfast.training.step import make_learner

# Every so many steps the losses are looked at, which waits for the device; in between nothing does.
CHECK_EVERY = 32

Record = dict[str, Any]  # one line of metrics.jsonl


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
        launcher: calls the steps, or replays them.
        chosen: by which plans the fused layers are to be computed while `run` is on, which its caller puts in force.
    """

    def __init__(
        self,
        model: Classifier,
        train: DeviceData,
        val: DeviceData | None,
        config: LearnConfig,
        ranks: Ranks = Ranks(),  # noqa: B008  # frozen: a team of one
        tuning: Tuning = Tuning(),  # noqa: B008  # has no state
        replay: Replay | None = None,
    ) -> None:
        """Prepares a training of `model`, which is on the device of the data.

        Args:
            model: gives logits.
            train: what it learns from.
            val: what chooses the best epoch; None is nothing.
            config: optimiser, schedule, epochs, batch size, seed and the like.
            ranks: which of the processes that train together this one is.
            tuning: which of the model's parameters learn.
            replay: samples of an earlier task to learn from as well; their loss is added to that of `train`.
        """
        self.model, self.train, self.val, self.config, self.ranks = model, train, val, config, ranks
        self.plan, self.tuning = Plan(config.planned_epochs(len(train)), len(train), config), tuning
        if config.starts_from_patches:
            start_from_patches(model, train.gather(epoch_order(len(train), config.seed, 0)[:IMAGES])[0])
        self.learner = make_learner(model, train, config, self.plan, ranks, tuning, replay)
        self.device, self.tally = self.learner.rates.lr.device, self.learner.tally
        batches = Counter(self.plan.images_of(step) for step in range(self.plan.steps))
        self.launcher = make_launcher(config, self.learner, batches, ranks)
        self.chosen, self._usual_batch = BY_RULE, batches.most_common(1)[0][0]
        self.step = 0
        self._begun: int | None = None  # the step that the tensors on the device are ready for
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

    def choose(self, seconds: float) -> None:
        """Measures before the first step, for at most `seconds`, by which plans it is fastest; counts as no training.

        The first process measures and tells the others.
        """
        self.tuning.begin_epoch(self.model, 0)
        measure = partial(choose, self.learner, self._usual_batch, seconds, replayed=self.launcher.to_replay)
        self.chosen = self.ranks.of_first(measure)
        self._since = time.perf_counter()

    def run(self) -> Iterator[Record | None]:
        """Trains, and yields after every step: the epoch's record when the step ended one, else None.

        Raises:
            DivergedError: the loss, or a weight about to be saved, is not a finite number.
        """
        self._since = time.perf_counter()
        while not self.finished:
            epoch, done = divmod(self.step, self.plan.steps_per_epoch)
            steps = self.plan.steps_in(epoch)
            self.prepare()
            started = time.perf_counter()
            bounds = self.plan.bounds
            for slot in range(done, steps):
                self._step(slot)
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

    def prepare(self) -> None:
        """Does what comes before the next step: begins its epoch, and records steps that are to be replayed."""
        if self._begun == self.step or self.finished:
            return
        epoch, done = divmod(self.step, self.plan.steps_per_epoch)
        self.tuning.begin_epoch(self.model, epoch)
        samples = self.learner.epoch
        samples.begin(epoch)
        self.tally.begin(self.train.labels.index_select(0, samples.order), done)
        self.learner.cursor.move(self.step, self.plan.bounds[done])
        self.launcher.prepare()
        self._begun = self.step

    def _step(self, slot: int) -> None:
        """Takes the epoch's step `slot`, and looks at the losses now and then."""
        self.launcher.take(self.plan.images_of(slot))
        self.step += 1
        if (slot + 1) % CHECK_EVERY == 0:
            self._check_losses(slot + 1)
            self.recent = self.tally.means(slot + 1)

    @property
    def judged(self) -> Classifier:
        """The model whose weights are judged and kept: the average of the steps where there is one."""
        return self.learner.judged

    @property
    def images_seen(self) -> int:
        """Images learnt from so far, over all epochs."""
        epoch, done = divmod(self.step, self.plan.steps_per_epoch)
        return epoch * len(self.train) + self.plan.bounds[done]

    def rate(self, step: int) -> float:
        """Returns the learning rate of `step`."""
        return learning_rate(self.config.schedule, step, self.plan.steps, self.config.lr)

    def _close_epoch(self, epoch: int, steps: int) -> Record:
        self.recent = loss, accuracy = self.tally.means(steps)
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

    def _check_losses(self, steps: int) -> None:
        bad = self.tally.first_bad(steps)
        if bad:
            slot, loss = bad
            step = self.step - steps + slot
            self._diverged(f"the loss became {loss} at step {step + 1}", step)

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
        tally = self.tally.state(done)
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
            **tally,
            "model": self.model.state_dict(),
            "average": self.learner.average.state_dict() if self.learner.average else None,
            "optimizer": saved(self.learner.optimizer),
            "chosen": self.chosen.state(),
            **dict(zip(("rng", "cuda_rng"), rng_state(self.device), strict=True)),
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
        self.chosen = Chosen.of_state(state["chosen"]) if "chosen" in state else BY_RULE  # as older states have it
        self.tally.load(state["losses"], state["hits"])
        self.model.load_state_dict(state["model"])
        if self.learner.average:
            self.learner.average.load_state_dict(state["average"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        tie(self.learner.optimizer, self.learner.rates)
        self.launcher.forget()  # the optimiser's tensors are others now
        set_rng_state((state["rng"], state["cuda_rng"]), self.device)
        self._begun = None

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


def _rank(record: Record) -> tuple[float, float]:
    return record.get("val_accuracy", 0.0), -record.get("val_loss", 0.0)
