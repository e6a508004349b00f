"""Writing a model for other programs: ONNX, torch.export's .pt2 and safetensors, each proven to answer as ours does.

What is written is the plain twin of the model (torch's own layers with the same weights). ONNX and .pt2 files carry
normalisation and calibration too: pixels in 0..1 go in, the softmax of what comes out are calibrated probabilities.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

import convpool
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.errors import DeviceError, ThresholdError, UsageError
from mnistfast.files.atomic import make_folder, write_atomic
from mnistfast.models.zoo import FUSED_LAYERS, Classifier, build
from mnistfast.runs.checkpoint import CheckpointInfo, encode, find_checkpoint, load_checkpoint
from mnistfast.training.inference import predict

TOLERANCE = 1e-4  # of a logit: rounding in another order comes to 1e-6, a wrong layer to more than 1e-2
BATCHES = (1, 7, 64)  # ... and the rest of the images: a graph frozen to one size fails at the next
LATENCY_BATCHES = (1, 64)
REPEATS = 30
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # what a format needs besides torch

Runner = Callable[[np.ndarray], np.ndarray]
"""Pixels in 0..1, float32 (N, C, H, W), to calibrated logits, float32 (N, classes)."""


class Exported(nn.Module):
    """The plain twin of a model with its normalisation and its temperature."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Classifier, info: CheckpointInfo) -> None:
        super().__init__()
        self.model = plain_twin(model, info)
        self.temperature = info.temperature
        shape = (1, len(info.mean), 1, 1)
        self.register_buffer("mean", torch.tensor(info.mean).view(shape))
        self.register_buffer("std", torch.tensor(info.std).view(shape))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, classes) of `images`, pixels in 0..1."""
        return self.model((images - self.mean) / self.std) / self.temperature


def plain_twin(model: Classifier, info: CheckpointInfo) -> Classifier:
    """Returns a copy of `model` in eval mode whose fused layers are torch's own."""
    twin = build(info.model, **info.arguments)
    convpool.unfuse(twin, inplace=True)  # a backbone's
    twin.load_state_dict(model.state_dict())
    for layer in twin.modules():
        if isinstance(layer, FUSED_LAYERS):
            layer.plain = True
    return twin.eval()


@dataclass(frozen=True)
class Written:
    """What became of one format.

    Attributes:
        path: the file.
        size: its bytes.
        difference: the greatest between a logit of the file and ours.
        milliseconds: median time to answer a batch, by its size.
    """

    path: Path
    size: int
    difference: float
    milliseconds: dict[int, float]


def export(
    checkpoint: str, formats: list[str], out: str | None, *, overwrite: bool = False, head: int = 0
) -> list[Written]:
    """Writes `checkpoint` in each of `formats`, having checked what is to be written against the model itself.

    Args:
        checkpoint: a run's folder or a checkpoint.
        formats: of `FORMATS`.
        out: folder to write to; None is `export` beside the checkpoint.
        overwrite: replace files that are there.
        head: which head of a fine-tuned model, as in `load_checkpoint`.

    Raises:
        CheckpointError: missing, damaged or foreign checkpoint.
        DeviceError: a package that a format needs is not installed.
        ThresholdError: a file would differ by more than `TOLERANCE` or change a label; it is not written.
        UsageError: a file is there and `overwrite` is not set.
        StorageError: the folder or a file cannot be written.
    """
    path = find_checkpoint(checkpoint)
    _check_packages(formats)
    model, info = load_checkpoint(path, head=head)
    folder = Path(out) if out else path.parent / "export"
    files = {name: folder / f"{info.model}.{name}" for name in formats}
    taken = [str(file) for file in files.values() if file.exists()]
    if taken and not overwrite:
        raise UsageError(f"{', '.join(taken)} would be replaced", fix="--overwrite or another --out")
    make_folder(folder)
    images = sample_images(info.input_size)
    wanted = _ours(model, info, images)
    written = []
    for name, file in files.items():
        encode, decode = FORMATS[name]
        content = encode(Exported(model, info).eval(), info)
        run = decode(content, info)
        difference = check(run, images, wanted, file)
        write_atomic(file, content)
        written.append(Written(file, len(content), difference, {n: _latency(run, images[:n]) for n in LATENCY_BATCHES}))
    return written


def check(run: Runner, images: np.ndarray, wanted: np.ndarray, file: Path) -> float:
    """Returns the greatest difference between what `run` answers to `images` (uint8) and the logits `wanted`.

    Raises:
        ThresholdError: it exceeds `TOLERANCE`, is not a number, or a label changes.
    """
    pixels = images.astype(np.float32) / 255
    found = np.concatenate([run(part) for part in np.split(pixels, np.cumsum(BATCHES)) if len(part)])
    difference = float(np.abs(found - wanted).max())
    changed = int((found.argmax(1) != wanted.argmax(1)).sum())
    if not difference <= TOLERANCE or changed:
        what = f"{file.name} differs: largest difference {difference:.1e} (at most {TOLERANCE:.0e} is allowed)"
        raise ThresholdError(f"{what}, {changed} of {len(images):,} labels changed", f"{file} was not written")
    return difference


def sample_images(size: tuple[int, int, int]) -> np.ndarray:
    """Returns 1,000 images, uint8 (1000, C, H, W): the shipped sample's to test on, a digit in each channel."""
    channels, height, width = size
    digits = torch.from_numpy(load("sample", offline=True).test.images)
    if digits.shape[2:] != (height, width):
        scaled = nn.functional.interpolate(digits.float(), (height, width), mode="bilinear", antialias=True)
        digits = scaled.round().to(torch.uint8)
    return torch.cat([digits.roll(shift, 0) for shift in range(channels)], 1).numpy()


def _ours(model: Classifier, info: CheckpointInfo, images: np.ndarray) -> np.ndarray:
    data = DeviceData(Split(images, np.zeros(len(images), np.int64)), torch.device("cpu"), info.mean, info.std)
    return (predict(model, data)[0] / info.temperature).numpy()


def _latency(run: Runner, images: np.ndarray) -> float:
    pixels, times = images.astype(np.float32) / 255, []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run(pixels)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


# The formats: how a model becomes bytes, and how bytes are run


def _to_onnx(model: Exported, info: CheckpointInfo) -> bytes:
    import onnx

    batch = torch.export.Dim("batch")
    with _silence():
        program = torch.onnx.export(
            model, _example(info), dynamo=True, dynamic_shapes=({0: batch},), input_names=["images"],
            output_names=["logits"], verbose=False,
        )  # fmt: skip
    assert program is not None  # it is when dynamo is off
    proto = program.model_proto
    onnx.helper.set_model_props(proto, info.to_header())
    return proto.SerializeToString()


def _run_onnx(content: bytes, info: CheckpointInfo) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["logits"], {"images": pixels})[0]


def _to_pt2(model: Exported, info: CheckpointInfo) -> bytes:
    buffer = io.BytesIO()
    program = torch.export.export(model, _example(info), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, buffer, extra_files={"mnistfast.json": json.dumps(info.to_header())})
    return buffer.getvalue()


def _run_pt2(content: bytes, info: CheckpointInfo) -> Runner:
    return _runner(torch.export.load(io.BytesIO(content)).module())


def _to_safetensors(model: Exported, info: CheckpointInfo) -> bytes:
    return bytes(encode(model.model.state_dict(), info.to_header()))


def _run_safetensors(content: bytes, info: CheckpointInfo) -> Runner:
    model = build(info.model, **info.arguments)
    model.load_state_dict(safetensors.torch.load(content))
    return _runner(Exported(model, info).eval())


FORMATS: dict[str, tuple[Callable[[Exported, CheckpointInfo], bytes], Callable[[bytes, CheckpointInfo], Runner]]] = {
    "onnx": (_to_onnx, _run_onnx),
    "pt2": (_to_pt2, _run_pt2),
    "safetensors": (_to_safetensors, _run_safetensors),
}


def _example(info: CheckpointInfo) -> tuple[Tensor]:
    return (torch.zeros(2, *info.input_size),)  # a batch of 1 would be taken for a constant


def _runner(module: Callable[[Tensor], Tensor]) -> Runner:
    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(pixels)).numpy()

    return run


def _check_packages(formats: list[str]) -> None:
    for name in formats:
        missing = []
        for package in PACKAGES.get(name, ()):
            try:
                importlib.import_module(package)
            except ImportError:
                missing.append(package)
        if missing:
            others = ",".join(other for other in FORMATS if other not in PACKAGES)
            fix = f"pip install 'mnistfast[export]', or --format {others}"
            raise DeviceError(f"--format {name} needs {', '.join(missing)}", "Not installed", fix)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps the exporter's notes on its own progress and versions from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
