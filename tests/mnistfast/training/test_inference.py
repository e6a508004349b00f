"""What a model answers does not depend on how it is asked."""

import pytest
import torch

from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.models.zoo import build
from mnistfast.training.inference import embed, predict


@pytest.fixture
def data(tiny):
    """50 images on the CPU."""
    return DeviceData(load(str(tiny)).test, torch.device("cpu"), [0.1], [0.3])


def test_predict_keeps_order_and_mode(data):
    model = build("lenet5", dropout=0.5).train()
    (together, labels), (piecewise, same) = predict(model, data), predict(model, data, batch_size=7)
    assert not model.training
    torch.testing.assert_close(together, piecewise)
    assert torch.equal(labels, data.gather(torch.arange(len(data)))[1])
    assert torch.equal(labels, same)
    assert not together.requires_grad


def test_embeddings_stand_for_their_images(data):
    model = build("lenet5", dropout=0.5, old_classes=[3]).train()
    embedded = embed(model, data)
    for head in (0, 1):
        logits, labels = predict(model, embedded, head=head)
        torch.testing.assert_close(logits, predict(model, data, head=head)[0])
    assert torch.equal(labels, predict(model, data)[1])
