"""What a model answers, and what its body makes of images, when nothing is learnt."""

from __future__ import annotations

import torch
from torch import Tensor

from mnistfast.data.loader import DeviceData, EmbeddedData
from mnistfast.models.zoo import Classifier


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
