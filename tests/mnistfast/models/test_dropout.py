"""Dropout that slices of a batch share."""

import pytest
import torch
from torch import nn

from mnistfast.models.dropout import BatchDropout, share_batch


def test_slices_drop_what_the_whole_would():
    layer, x = BatchDropout(0.4), torch.randn(10, 3, 5)
    torch.manual_seed(1)
    whole = layer(x)
    parts = []
    for rows in (slice(0, 4), slice(4, 4), slice(4, 10)):
        torch.manual_seed(1)
        share_batch(nn.Sequential(layer), 10, rows)
        parts.append(layer(x[rows]))
    assert torch.equal(torch.cat(parts), whole)


def test_share_and_scale():
    layer, x = BatchDropout(0.3), torch.ones(400, 100)
    dropped = layer(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert torch.equal(layer.eval()(x), x)
