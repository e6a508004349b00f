"""verify sees what differs, and only that."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convpool
from convpool.fusion import chain


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(36, 2),
    )
    return nn.Sequential(*layers).double()


X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def test_equal_models_do_not_differ() -> None:
    model = net()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    differences = convpool.verify(model, net(), X)
    assert differences.within(0)
    assert {row.name for row in differences.rows} >= {
        "output 0",
        "gradient of argument 0",
        "gradient of 1.weight",
        "1.running_var",
    }
    assert {row.mode for row in differences.rows} == {"training", "eval"}
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_wrong_weight_is_seen() -> None:
    other = net()
    with torch.no_grad():
        other[6].bias[0] += 1e-3
    differences = convpool.verify(net(), other, (X,))
    assert differences.largest.name == "output 0"
    assert not differences.within(1e-6)
    assert "output 0" in str(differences)


def test_a_wrong_op_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        chain, "conv_relu_max_pool2d", lambda x, w, b, pool_kernel_size, **_: F.max_pool2d(F.conv2d(x, w, b), 2)
    )
    model = net()
    differences = convpool.verify(model, convpool.fuse(model), X)
    assert not differences.within(1e-6)
    assert {row.mode for row in differences.rows if row.relative > 1e-6} == {"eval"}


def test_nan_is_a_difference_unless_both_have_it() -> None:
    broken = net()
    with torch.no_grad():
        broken[6].bias.fill_(float("nan"))
    assert not convpool.verify(net(), broken, X).within(1e9)
    assert convpool.verify(broken, broken, X).within(0)


def test_other_shapes_and_names_are_refused() -> None:
    wide = nn.Sequential(*list(net())[:6], nn.Linear(36, 3).double())
    with pytest.raises(ValueError, match="output 0 has shape"):
        convpool.verify(net(), wide, X)
    with pytest.raises(ValueError, match="same tensors"):
        convpool.verify(net(), nn.Sequential(net()), X)
    with pytest.raises(TypeError, match="verify"):
        convpool.verify(net(), None, X)  # type: ignore[arg-type]
