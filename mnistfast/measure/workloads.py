"""What is measured: layers, training steps, inference and epochs, each by torch's own forms and by the fused layers.

What a workload is, and single layers: `measure.layers`. How forms are raced and reported: `measure.suite`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convpool import use_backend
from convpool.fusion.memory import kept_bytes
from convpool.testing.candidates import ParityError
from convpool.testing.cases import BATCH_NORM, CASES, Case, by_name
from convpool.testing.timing import Call
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.data.statistics import channel_stats
from mnistfast.measure.forms import FORMS, REPLAYED, backend_for
from mnistfast.measure.layers import KEPT_BY, Layer, NormLayer, NotRecordedError, Workload
from mnistfast.models.zoo import Classifier
from mnistfast.options.learning import TrainConfig
from mnistfast.training.recipe import built, learn
from mnistfast.training.trainer import Trainer

LAYERS = (  # the small networks' own, then a deep one, a strided one with overlapping windows
    *("cnn-1", "cnn-2", "lenet5-1", "lenet5-2", "fast-1", "fast-2", "cifar-1"),
    *("vgg-2", "resnet-stem"),
)
GROWTH = {"batch": (1, 4, 16, 64, 256, 1024), "channels": (4, 8, 16, 32, 64, 128)}
MODELS = ("cnn2", "lenet5")
GPU_BATCH = 1024  # of a step beside its preset's batch, for a small one leaves a GPU idle
INFERENCE_BATCHES = (1, 64, 1024)
EPOCH_IMAGES = 60_000  # as MNIST has
# As in training, a step finds in the caches what the step before it left there, and not what another network did. In ms
# of one thread, cnn2 after another form's step and after its own: eager 45 and 46, the best plain form 24.9 and 24.0,
# the fused layers 8.4 and 7.4.
STEPS_IN_A_ROW = 16


@dataclass(frozen=True)
class Launched:
    """A form of a model, and how a training launches its steps: `LearnConfig.graph`."""

    model: Classifier
    graph: str


@dataclass
class Step(Workload[Launched]):
    """One training step of a model: forward, loss, backward, the optimiser of its preset.

    Attributes:
        model: its name.
        batch: images; None: the preset's.
    """

    model: str
    device: torch.device
    batch: int | None = None
    group = "training step"
    replayable = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.model}, batch {self.config.batch_size}"

    @cached_property
    def config(self) -> TrainConfig:
        """The model's preset, with this batch."""
        preset = TrainConfig(model=self.model, device=str(self.device))
        return replace(preset, batch_size=self.batch or preset.batch_size)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Each form's steps are launched in these ways: `LearnConfig.graph`."""
        return ("off", "on") if self.device.type == "cuda" else ("off",)

    def forms(self) -> dict[str, Launched]:
        model = built(self.config, 10, self.device)
        made = [Launched(make(model), graph) for graph in self.graphs for make in FORMS.values()]
        return dict(zip(self.names, made, strict=True))

    @property
    def names(self) -> list[str]:
        return [name + REPLAYED * (graph == "on") for graph in self.graphs for name in FORMS]

    def calls(self, form: Launched) -> list[Call]:
        self.check(form.model, self._batch()[0], backward=True)
        batch = self.config.batch_size
        data = on_device(sample(STEPS_IN_A_ROW * batch), self.device)
        with use_backend(self.backend):
            trainer = Trainer(form.model, data, None, replace(self.config, graph=form.graph))
            trainer.prepare()
        if form.graph == "on" and batch not in trainer.launcher.sizes:
            raise NotRecordedError(trainer.launcher.obstacle)

        def step() -> None:
            with use_backend(self.backend):
                trainer.launcher.take(batch)

        def first() -> None:
            trainer.learner.cursor.move(0, 0)
            step()

        return [first, *[step] * (STEPS_IN_A_ROW - 1)]

    def compiled(self, form: Launched, mode: str) -> Launched:
        model = torch.compile(form.model, fullgraph=True, dynamic=False, mode=mode)
        return Launched(model, "off")  # type: ignore[arg-type]

    def facts(self) -> dict[str, Any]:
        images, _ = self._batch()
        forms = {name: form.model for name, form in self.forms().items()}
        kept = {name: kept_bytes(forms[name], images, ignore=forms[name].parameters()) for name in KEPT_BY}
        return {"batch": self.config.batch_size, "kept_bytes": kept}

    @property
    def backend(self) -> str:
        """Whom the fused layers are computed by."""
        return backend_for(self.device)

    def check(self, form: nn.Module, images: Tensor, *, backward: bool) -> None:
        """Holds `form` against the model on torch's layers in float64. Raises ParityError."""
        oracle = FORMS["eager"](built(self.config, 10, self.device)).double()
        with use_backend(self.backend):
            check_model(form, oracle, images, backward=backward)

    def _batch(self) -> tuple[Tensor, Tensor]:
        return real_images(self.config.batch_size, self.device)


@dataclass
class Inference(Step):
    """Logits of a batch, in torch.inference_mode."""

    group = "inference"
    replayable = True
    graphs = ("off",)  # nothing learns

    def calls(self, form: Launched) -> list[Call]:
        model, (images, _) = form.model, self._batch()
        self.check(model, images, backward=False)
        model.eval()

        def infer() -> object:
            with torch.inference_mode(), use_backend(self.backend):
                return model(images)

        return [infer]

    def facts(self) -> dict[str, Any]:
        return {"batch": self.batch}


@dataclass
class Epoch(Step):
    """A model's preset once over 60,000 images: `training.recipe.learn`, from uint8 arrays to weights.

    On a GPU its steps are replayed, unless the form is compiled; recording them is part of its time.
    """

    group = "epoch"
    graphs = ("auto",)
    least_rounds = 2  # of a minute each: quartiles need two

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.model}, {EPOCH_IMAGES:,} images"

    def calls(self, form: Launched) -> list[Call]:
        self.check(form.model, self._batch()[0], backward=True)
        train = sample(EPOCH_IMAGES)
        config = replace(self.config, epochs=1, graph=form.graph)

        def epoch() -> object:
            with use_backend(self.backend):
                return learn(form.model, train, config)

        return [epoch]


def workloads(device: torch.device, *, everything: bool = False) -> list[Workload[Any]]:
    """Returns what is measured on `device`: a representative few, or with `everything` the whole table of shapes."""
    cases = [case for case in CASES if case.batch] if everything else [by_name(name) for name in LAYERS]
    layers = [Layer(case.at_full_size(), backward, device) for backward in (True, False) for case in cases]
    # On a GPU `convpool` stands for a backend, and that one takes no statistics of a batch.
    normed = [NormLayer(case.at_full_size(), True, device) for case in BATCH_NORM if device.type == "cpu"]
    return [
        *layers,
        *normed,
        *(Layer(case, True, device, growth) for growth, row in _growing().items() for case in row),
        *(Step(model, device) for model in MODELS),
        *([Step(MODELS[0], device, GPU_BATCH)] if device.type == "cuda" else []),
        *(Inference(model, device, batch) for model in MODELS for batch in INFERENCE_BATCHES),
        Epoch(MODELS[0], device),
    ]


def _growing() -> dict[str, list[Case]]:
    """Returns cnn2's second layer at other sizes, by what grows."""
    case = by_name("cnn-2").at_full_size()
    return {
        "growth with batch": [replace(case, name=str(n), batch=n) for n in GROWTH["batch"]],
        "growth with channels": [replace(case, name=str(n), in_channels=n, out_channels=n) for n in GROWTH["channels"]],
    }


def check_model(form: nn.Module, oracle: nn.Module, images: Tensor, *, backward: bool) -> None:
    """Holds a form of a model against the model on torch's layers in float64, to the last bit.

    Both get small integers for weights and black-and-white images, so that every sum is exact: logits must be equal
    and, with `backward`, the gradients of all parameters. The form's own weights are put back, the oracle's are not.

    Raises:
        ParityError: something differs.
    """
    own = [weight.detach().clone() for weight in form.parameters()]
    black_and_white = (images > images.mean()).float()
    got = _on_integers(form, black_and_white, backward)
    expected = _on_integers(oracle, black_and_white.double(), backward)
    for (name, mine), theirs in zip(got.items(), expected.values(), strict=True):
        assert theirs.abs().max() < 2**24, f"{name} is too large to be exact in float32"
        if not torch.equal(mine.double(), theirs):
            gap = (mine - theirs).abs().max().item()
            raise ParityError(f"wrong {name}: off by {gap:g} of {theirs.abs().max().item():g} on integers")
    with torch.no_grad():
        for weight, value in zip(form.parameters(), own, strict=True):
            weight.copy_(value)


def _on_integers(model: nn.Module, images: Tensor, backward: bool) -> dict[str, Tensor]:
    """Returns logits and gradients of `model` with weights of -1, 0 and 1, most of them 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            drawn = torch.randint(0, 8, weight.shape, generator=generator)
            weight.copy_((drawn == 0).float() - (drawn == 1).float())
    with torch.inference_mode(not backward):
        logits = model.train(backward)(images)
    if not backward:
        return {"logits": logits}
    names, parameters = zip(*model.named_parameters(), strict=True)
    upstream = torch.randint(-1, 2, logits.shape, generator=generator).to(logits)
    gradients = torch.autograd.grad(logits, parameters, upstream)
    return {"logits": logits.detach()} | dict(zip(names, gradients, strict=True))


@cache
def real_images(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns float32 (count, 1, 28, 28) and labels of `sample`."""
    return on_device(sample(count), device).gather(torch.arange(count))


def on_device(split: Split, device: torch.device) -> DeviceData:
    """Returns `split` on `device`, normalised by its own statistics."""
    return DeviceData(split, device, *channel_stats(split.images))


def sample(count: int) -> Split:
    """Returns `count` digits of the shipped sample, over again if need be."""
    split = load("sample").train
    chosen = np.arange(count) % len(split.labels)
    return Split(split.images[chosen], split.labels[chosen])
