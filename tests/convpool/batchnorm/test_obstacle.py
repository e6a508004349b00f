"""Whether layers under batch statistics are one op at all, asked before any picture is known."""

import pytest
import torch
from torch import nn

from convpool import use_backend
from convpool.batchnorm.obstacle import obstacle
from convpool.fusion.chain import MaxPool2d
from convpool.protocol import ORDINARY
from tests.convpool.batchnorm.layers import SERVING
from tests.convpool.own_backend import own_backend

POOL = nn.MaxPool2d(2)


@pytest.mark.parametrize("name", SERVING)
def test_what_a_named_backend_serves(name) -> None:
    with use_backend(name):
        assert obstacle(nn.Conv2d(3, 8, 3), POOL, ORDINARY) is None
        assert obstacle(nn.Conv2d(3, 8, (1, 5), 2, "valid", 2), MaxPool2d(3, [2, 1]), ORDINARY) is None
        assert obstacle(nn.Conv2d(3, 8, 3, padding=2, padding_mode="circular"), MaxPool2d(3, 1, 1), ORDINARY) is None
        assert (
            obstacle(nn.Conv2d(3, 8, 7), MaxPool2d((5, 40), dilation=(30, 1)), ORDINARY) is None
        )  # windows wider than usual


def test_why_layers_stay_torchs() -> None:
    conv = nn.Conv2d(3, 8, 3)
    with use_backend("triton"):
        assert "backend 'triton' cannot serve this call" in str(obstacle(conv, POOL, ORDINARY))
    assert obstacle(conv.half(), POOL, ORDINARY) == "cpu: dtype torch.float16: the kernels are written for float32"
    assert "no backend for device type 'meta'" in str(obstacle(nn.Conv2d(3, 8, 3, device="meta"), POOL, ORDINARY))
    assert "a pool window" in str(obstacle(nn.Conv2d(3, 8, 3), nn.MaxPool2d(16), ORDINARY))


def test_autocast_counts() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "bfloat16" in str(obstacle(nn.Conv2d(3, 8, 3), POOL, ORDINARY))


def test_another_backend_is_asked_anew() -> None:
    """`auto` takes it inside, and what was found out before and inside is forgotten."""
    conv = nn.Conv2d(300, 8, 3)  # more patch values than it is worth while for
    before = obstacle(conv, POOL, ORDINARY)
    assert before
    with own_backend(profitable=True):
        assert obstacle(conv, POOL, ORDINARY) is None
    assert obstacle(conv, POOL, ORDINARY) == before
