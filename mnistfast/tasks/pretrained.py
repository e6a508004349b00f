"""Weights for the backbones: from a file, from torchvision's address, or none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mnistfast.data.fetch import cache_folder, fetch
from mnistfast.errors import CheckpointError, DataError, StorageError
from mnistfast.models import backbones
from mnistfast.models.zoo import Classifier
from mnistfast.runs.checkpoint import check_values
from mnistfast.runs.integrity import decoding
from mnistfast.runs.state import check_plain

RANDOM = "random"
MAX_BYTES = 600_000_000  # VGG16's published file has 528 MB, most of them its classifier's


def find_weights(name: str, weights: str | None, *, offline: bool) -> tuple[str, str]:
    """Looks for weights of the backbone `name`.

    Args:
        name: of `backbones.NAMES`.
        weights: a file with torchvision's state dict (.safetensors, or what torch.save wrote); `random`; None: what
            torchvision publishes where it is at hand or can be fetched, else random.
        offline: never open a connection.

    Returns:
        A file or `random`, and where that comes from in words.
    """
    if weights is None:
        try:
            weights = str(_published(name, offline))
        except StorageError as error:
            return RANDOM, f"{name} with RANDOM weights: {error.what} ({error.why}); --weights FILE takes torchvision's"
    if weights == RANDOM:
        return RANDOM, f"{name} with random weights, as asked for"
    return str(Path(weights).resolve()), f"{name} with the weights of {weights}"


def _published(name: str, offline: bool) -> Path:
    """Returns the file of torchvision's weights: torch's own download, ours, or fetched now. Raises StorageError."""
    base, _, file = backbones.published_weights(name).url.rpartition("/")
    folder = cache_folder("weights")
    for place in (Path(torch.hub.get_dir()) / "checkpoints", folder):
        if (place / file).is_file():
            return place / file
    if offline:
        raise StorageError(f"no {file} in {folder}", "--offline forbids a download")
    fetch([file], folder, [f"{base}/"], _verify, max_bytes=MAX_BYTES)
    return folder / file


def _verify(file: str, content: bytes, url: str) -> None:
    """Compares the content with the beginning of its SHA-256 that torchvision puts into the name of a file."""
    expected = Path(file).stem.rpartition("-")[2]
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(expected):
        raise DataError(f"{url}: its SHA-256 begins with {found[:8]}, not {expected}")


def load_weights(model: Classifier, path: Path) -> None:
    """Loads torchvision's state dict at `path` into the backbone of `model`.

    Raises:
        CheckpointError: the file is missing, damaged or another network's.
    """
    trunk = model.features[1]
    found = backbones.trunk_weights(model.name, _read(path))
    wanted = trunk.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # which old files lack
    wrong = [
        f"{name}: {tuple(found[name].shape) if name in found else 'missing'} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name not in counters and (name not in found or found[name].shape != tensor.shape)
    ]
    if wrong:
        raise CheckpointError(f"the tensors of {path} do not fit {model.name}", "; ".join(wrong[:3]))
    trunk.load_state_dict({name: found.get(name, tensor) for name, tensor in wanted.items()})


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}", fix="--weights takes a file, or random")
    with decoding(path, "It is no safetensors file, nor one of tensors that torch.save wrote", "another file"):
        if path.suffix == ".safetensors":
            read = safetensors.torch.load_file(path)
        else:
            read = torch.load(path, map_location="cpu", weights_only=True)  # no pickled object is ever made
        if not isinstance(read, dict) or not all(isinstance(tensor, Tensor) for tensor in read.values()):
            raise CheckpointError(f"{path} holds no state dict", "A dict of tensors is needed")
        check_plain(read, path)
        check_values(read, path)
    return read
