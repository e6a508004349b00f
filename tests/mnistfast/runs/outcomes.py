"""What is looked at after a run that was stopped, and how one is stopped."""

import json
import signal

import torch
from safetensors.torch import load_file

from mnistfast.training.launching import Launcher


def outcome(folder):
    """Returns all of a run that must not depend on how often it was stopped: weights, records, scores."""
    weights = {name: load_file(folder / f"{name}.safetensors") for name in ("best", "last")}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"], record["images_per_s"]
    return weights, records, json.loads((folder / "test.json").read_text())


def assert_same_outcome(folder, expected):
    weights, records, scores = outcome(folder)
    for name, tensors in expected[0].items():
        for key, tensor in tensors.items():
            assert torch.equal(weights[name][key], tensor), f"{key} of {name}"
    assert records == expected[1]
    assert scores == expected[2]
    assert (folder / "STATUS").read_text() == "finished\n"
    assert not list(folder.glob(".*.tmp"))


def at_steps(monkeypatch, steps, action):
    """Calls `action` in each of these steps, counted from 1, as it is launched."""
    take = Launcher.take

    def taking(self, batch):
        if self.learner.cursor.coming[0].item() + 1 in steps:
            action()
        return take(self, batch)

    monkeypatch.setattr(Launcher, "take", taking)


def signal_at(monkeypatch, steps, signum):
    """Sends a signal to this process in the middle of each of these steps."""
    at_steps(monkeypatch, steps, lambda: signal.raise_signal(signum))
