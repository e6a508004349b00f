"""What the steps measure: layers with their tensors, models, images, and how float32 rounds."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from convpool.layout import memory_format
from convpool.testing import timing
from convpool.testing.cases import Case, by_name
from convpool.testing.machine import keep_freed_memory
from convpool.testing.parity import Inputs, Layout
from convpool.testing.timing import Race, Timing

Numbers: TypeAlias = Literal["tf32", "bf16", "ieee"]
Row: TypeAlias = tuple[dict[str, Any], Callable[[], dict[str, Any]]]  # what it is about, and what finds out the rest
Rows: TypeAlias = Iterator[Row]
Each = TypeVar("Each")

LAYOUTS: tuple[Layout, ...] = ("channels_last", "nchw")
DTYPES: dict[Numbers, torch.dtype] = {"tf32": torch.float32, "bf16": torch.bfloat16, "ieee": torch.float32}


@dataclass(frozen=True)
class Bench:
    """Where the steps run.

    Attributes:
        device: "cuda", or "cpu" in a rehearsal, which runs the same Python on next to nothing.
        data: folder of MNIST's IDX files, or "".
    """

    device: str
    data: str = ""

    @property
    def rehearses(self) -> bool:
        return self.device == "cpu"

    def settle(self) -> None:
        """Leave the other cores to those who compile."""
        if self.rehearses:
            torch.set_num_threads(1)

    def some(self, items: Sequence[Each]) -> Sequence[Each]:
        """All items; in a rehearsal the first and the last."""
        return [items[0], items[-1]] if self.rehearses and len(items) > 2 else items

    @property
    def ours(self) -> str:
        """Who computes the fused layers of models: the backend under test, or who does so quickly on a CPU."""
        return "auto" if self.rehearses else "triton"

    @property
    def kernels(self) -> str:
        """The backend under test, or its slow stand-in where there is no GPU."""
        return "reference" if self.rehearses else "triton"

    def race(
        self, calls: Mapping[str, timing.Call], *, replay: bool = True, times: int = 10, seconds: float = 0.06
    ) -> dict[str, dict[str, float]]:
        """Microseconds of a call by name, the candidates taking turns.

        Args:
            replay: time a replayed graph of the calls, else the calls with what Python spends on them.
            times: calls in a graph.
            seconds: of measuring, all candidates together; five rounds at least.
        """
        if not replay:
            keep_freed_memory()
        times, seconds = (1, 0.0) if self.rehearses else (times, seconds)
        repeated = {name: [call] * (times if replay else 1) for name, call in calls.items()}
        timings = Race(repeated, torch.device(self.device), replay=replay).run(seconds, least=5)
        return {name: microseconds(each) for name, each in timings.items()}

    @cached_property
    def images(self) -> Images:
        return Images.read(Path(self.data)) if self.data else Images.noise(256 if self.rehearses else 60_000)


def microseconds(timing: Timing) -> dict[str, float]:
    """Median, quartiles and number of samples, in microseconds."""
    return {
        "us": round(timing.median * 1e6, 3),
        "low": round(timing.low * 1e6, 3),
        "high": round(timing.high * 1e6, 3),
        "n": timing.rounds,
    }


def precise(numbers: Numbers) -> None:
    """Decide how float32 convolutions and products round, ours and the vendor's alike.

    By the flags that every version of torch and its compiler know: where only cudnn.conv.fp32_precision was set,
    reading allow_tf32 raises.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = numbers == "tf32"


# ------------------------------------------------------------------ layers


@dataclass(frozen=True)
class Layer:
    """One layer of a model, in one size, kind of numbers and memory format.

    numbers: "tf32", "bf16" or "ieee", float32 rounded as such.
    """

    name: str
    batch: int
    numbers: Numbers
    layout: Layout

    @property
    def case(self) -> Case:
        return replace(LAYERS[self.name], name=self.name, batch=self.batch)

    @property
    def dx(self) -> bool:
        """Whether x needs a gradient: not where it is an image."""
        return self.case.in_channels > 1

    @property
    def key(self) -> dict[str, Any]:
        return {"layer": self.name, "batch": self.batch, "numbers": self.numbers, "layout": self.layout}

    def inputs(self, device: str, *, integers: bool = False) -> Inputs:
        """Tensors with the numbers that the layer's name and shapes stand for, or small integers; on "meta" none."""
        case, dtype = self.case, DTYPES[self.numbers]
        form = torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

        def draw(shape: tuple[int, ...], scale: float) -> Tensor:
            if device == "meta":
                return torch.empty(shape, dtype=dtype, device=device)
            generator = torch.Generator(device).manual_seed(zlib.crc32(f"{self.name}{shape}".encode()))
            if integers:
                return torch.randint(-2, 3, shape, generator=generator, device=device).to(dtype)
            return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

        x = draw(case.x_shape, 1.0).contiguous(memory_format=form)
        weight = draw(case.weight_shape, case.geometry.reduction**-0.5).contiguous(memory_format=form)
        bias = draw((case.out_channels,), 0.1)
        dy = draw(case.geometry.output_shape, 1.0).contiguous(memory_format=memory_format(x, weight, case.settings))
        return Inputs(x, weight, bias, dy, case.settings)


def _known(name: str) -> Case:
    """A case of the table, at the size at which people run it."""
    return by_name(name).at_full_size()


def _case(channels: int, size: int, outputs: int, kernel: int, padding: int) -> Case:
    """A layer that the table of cases has not got; its name and batch come later."""
    options = {"padding": padding} if padding else {}
    return Case("", 0, channels, (size, size), outputs, (kernel, kernel), options)


# In order of value: the layers of cnn2, fast and lenet5, those of speedrun and accurate that pool, and three of a
# network for photographs.
LAYERS: dict[str, Case] = {
    "cnn-2": _known("cnn-2"),
    "cnn-1": _known("cnn-1"),
    "fast-2": _known("fast-2"),
    "fast-1": _known("fast-1"),
    "lenet-1": _known("lenet5-1"),
    "lenet-2": _known("lenet5-2"),
    "speed-2": _case(16, 10, 64, 3, 0),
    "accurate-1": _case(1, 28, 32, 5, 2),
    "accurate-3": _case(64, 14, 64, 3, 1),
    "accurate-4": _case(64, 7, 128, 3, 1),
    "vgg-2": _known("vgg-2"),
    "vgg-1": _known("vgg-1"),
    "vgg-3": _known("vgg-3"),
}
LARGE = ("vgg-2", "vgg-1", "vgg-3")  # measured in one size and format
BATCHES = (128, 1024)
USUAL: tuple[Numbers, ...] = ("tf32", "bf16")  # what people train in
LARGE_BATCH = 32


def layers(bench: Bench, *, large: bool = True) -> list[Layer]:
    """All layers: of each batch and kind of numbers one after the other, `large` ones in one size and format."""
    found = []
    for batch in BATCHES:
        for numbers in USUAL:
            for name in LAYERS:
                for layout in LAYOUTS:
                    if name not in LARGE:
                        found.append(Layer(name, 2 if bench.rehearses else batch, numbers, layout))
                    elif large and batch == BATCHES[0] and layout == "channels_last" and not bench.rehearses:
                        found.append(Layer(name, LARGE_BATCH, numbers, layout))
    return found


def usual_layout(name: str) -> Layout:
    """The format that a layer's input has in a model of channels_last format: images of one channel are in both."""
    return "channels_last" if LAYERS[name].in_channels > 1 else "nchw"


# ------------------------------------------------------------------ models and images


@dataclass(frozen=True)
class Form:
    """A way to write a model: of `mnistfast.measure.forms`, and who computes its fused layers."""

    name: str
    form: str
    channels_last: bool


FORMS = (
    Form("fused nchw", "convpool", False),
    Form("fused channels_last", "convpool, channels_last", True),
    Form("eager nchw", "eager", False),
    Form("pool_first channels_last", "pool before ReLU, channels_last", True),
)


def model(name: str, form: Form, device: str, seed: int = 0) -> nn.Module:
    """A model of mnistfast with fresh weights drawn from the seed, written in that form."""
    from mnistfast.measure import forms
    from mnistfast.options.learning import TrainConfig
    from mnistfast.training.recipe import built

    return forms.FORMS[form.form](built(TrainConfig(model=name, seed=seed), 10, torch.device(device)))


@dataclass(frozen=True)
class Images:
    """uint8 images and labels to learn from and to score, and whether they are MNIST's or noise of its shape."""

    train: Any  # mnistfast.data.datasets.Split
    test: Any
    real: bool

    @classmethod
    def read(cls, folder: Path) -> Images:
        """MNIST of its four IDX files. Raises DataError: some are missing or damaged."""
        from mnistfast.data import idx_set
        from mnistfast.data.datasets import Split
        from mnistfast.data.idx import read_idx
        from mnistfast.data.published import ROLES

        files = idx_set.complete(folder, ROLES)
        read = {role: read_idx(file, expect=idx_set.kind(role)) for role, file in files.items()}
        train, test = (
            Split(read[f"{part}-images"][:, None].copy(), read[f"{part}-labels"].astype(np.int64))
            for part in ("train", "test")
        )
        return cls(train, test, True)

    @classmethod
    def noise(cls, count: int) -> Images:
        """So many images of noise with labels drawn by lot."""
        from mnistfast.data.datasets import Split

        rng = np.random.default_rng(0)
        drawn = Split(rng.integers(0, 256, (count, 1, 28, 28), np.uint8), rng.integers(0, 10, count))
        return cls(drawn, Split(drawn.images[:10_000], drawn.labels[:10_000]), False)
