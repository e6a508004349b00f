"""verify sees what differs, and only that."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
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


X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("given", [torch.float32, torch.float16])
def test_in_float64_the_models_stay_what_they_are(given: torch.dtype) -> None:
    model = net().to(given)
    fused = convpool.fuse(model)
    before = {m: [(t, t.dtype, t.clone()) for t in m.state_dict(keep_vars=True).values()] for m in (model, fused)}
    assert convpool.verify(model, fused, X.to(given), dtype=torch.float64).within(1e-9)
    assert not convpool.verify(model, fused, X.to(given)).within(1e-9), "folding the norm rounds otherwise"
    for m, tensors in before.items():
        for now, (t, dtype, value) in zip(m.state_dict(keep_vars=True).values(), tensors, strict=True):
            assert now is t
            assert now.dtype is dtype
            assert torch.equal(now, value)


class Mixed(nn.Module):
    """Two layers that share a weight, a norm's counter, complex numbers, and tensors inside the arguments."""

    def __init__(self, notes: list[Any]) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.second.weight = self.first.weight
        self.register_buffer("phase", torch.full((3,), 1j))
        self.note = lambda *seen: notes.append(seen)  # a function: deepcopy leaves its list alone

    def forward(self, inputs: dict[str, Any], rows: Tensor) -> Tensor:
        x, scale = inputs["tensors"]
        dtypes = [t.dtype for t in (x, self.second.weight, rows, self.norm.num_batches_tracked, self.phase)]
        self.note(dtypes, self.first.weight is self.second.weight, x.requires_grad)
        return self.norm(self.second(self.first(x * scale)))[rows]


def test_floating_point_tensors_alone_are_converted() -> None:
    notes: list[Any] = []
    x, rows = torch.randn(4, 3), torch.tensor([0, 2])
    model = Mixed(notes)
    differences = convpool.verify(model, model, ({"tensors": [x, 2]}, rows), dtype=torch.float64)
    assert notes == [([torch.float64, torch.float64, torch.int64, torch.int64, torch.complex64], True, True)] * 4
    assert any(row.name == "gradient of argument 0" for row in differences.rows)
    assert x.dtype is torch.float32
    assert not x.requires_grad


def test_imaginary_parts_are_compared() -> None:
    model, other = Mixed([]), Mixed([])
    other.load_state_dict(model.state_dict() | {"phase": torch.full((3,), 2j)})
    example = ({"tensors": [torch.randn(4, 3), 2]}, torch.tensor([0, 2]))
    assert convpool.verify(model, other, example).largest.name == "phase"


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, "float64", float])
def test_other_types_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="dtype must be a floating-point"):
        convpool.verify(net(), net(), X, dtype=dtype)
