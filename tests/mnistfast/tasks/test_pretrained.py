"""Weights for backbones: found, fetched, checked, or said to be random."""

import hashlib
import pickle

import pytest
import safetensors.torch
import torch

from mnistfast.errors import CheckpointError, StorageError
from mnistfast.models import backbones
from mnistfast.models.zoo import build
from mnistfast.tasks import pretrained

pytest.importorskip("torchvision")


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("MNISTFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def model():
    return build("resnet50", size=(1, 28, 28), side=32)


def test_random_is_said(monkeypatch):
    assert pretrained.find_weights("vgg16", "random", offline=True) == (
        "random",
        "vgg16 with random weights, as asked for",
    )
    found, words = pretrained.find_weights("vgg16", None, offline=True)
    assert found == "random"
    assert words.startswith("vgg16 with RANDOM weights: no vgg16-397923af.pth in ")
    monkeypatch.setattr(pretrained, "fetch", lambda *args, **kwargs: (_ for _ in ()).throw(StorageError("no", "way")))
    assert "RANDOM weights: no (way)" in pretrained.find_weights("resnet50", None, offline=False)[1]


def test_fetched_once(tmp_path, monkeypatch):
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()[:8]

    class Entry:
        url = f"https://example.org/models/net-{digest}.pth"

    asked = []

    def fetch(names, folder, mirrors, verify, max_bytes):
        asked.append((names, mirrors))
        verify(names[0], content, "url")
        with pytest.raises(Exception, match="SHA-256"):
            verify(names[0], b"others", "url")
        folder.mkdir(parents=True)
        (folder / names[0]).write_bytes(content)

    monkeypatch.setattr(backbones, "published_weights", lambda name: Entry)
    monkeypatch.setattr(pretrained, "fetch", fetch)
    for _ in range(2):
        found, _ = pretrained.find_weights("vgg16", None, offline=False)
        assert found == str(tmp_path / "cache" / "weights" / f"net-{digest}.pth")
    assert asked == [([f"net-{digest}.pth"], ["https://example.org/models/"])]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_loads_what_torchvision_saves(model, tmp_path, suffix):
    file = tmp_path / f"w{suffix}"
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in model.features[1].state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if "num_batches" not in name} | {
        "fc.bias": torch.zeros(1000)
    }
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(state, file)
    pretrained.load_weights(model, file)
    found = model.features[1].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items() if name != "fc.bias")


def test_refused(model, tmp_path):
    (tmp_path / "pickled.pth").write_bytes(pickle.dumps(print))
    (tmp_path / "text.safetensors").write_text("no")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    for name, message in (
        ("nothing.pth", "no weights at"),
        ("pickled.pth", "pickled.pth is damaged. It is no safetensors file, nor one"),
        ("text.safetensors", "is damaged. It is no safetensors file, nor one"),
        ("other.pth", r"do not fit resnet50. conv1.weight: \(3,\) instead of \(64, 3, 7, 7\)"),
        ("list.pth", "holds no state dict"),
    ):
        with pytest.raises(CheckpointError, match=message):
            pretrained.load_weights(model, tmp_path / name)
