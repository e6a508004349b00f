"""Forwards that a trace would show wrongly are refused with a reason, and left as they were."""

import random
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import convpool
from convpool.fusion.trace import Traced, trace


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.seen: list[Tensor] = []
        self.count = 0

    def run(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.conv(x)), 2)


class BranchOnData(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x) if x.mean() > 0 else self.run(-x)


class BranchOnShape(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x) if x.shape[0] > 2 else self.run(-x)


class BranchOnType(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x if isinstance(x, Tensor) else x[0])


class PythonRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x) * random.random()


class TorchRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x) * torch.rand(()).item()


class OwnTensor(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x) + torch.ones(1)


class Counts(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.run(x) * self.count


class Collects(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.run(x)


class Prints(Base):
    def forward(self, x: Tensor) -> Tensor:
        print(x.shape)
        return self.run(x)


class NoGrad(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.run(x)


class NoGradInHelper(Base):
    def forward(self, x: Tensor) -> Tensor:
        return helper(self, x)


class NoGradDecorated(Base):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class Autocast(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.run(x)


class Checkpointed(Base):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.run, x, use_reentrant=False)


class KeywordOnly(Base):
    def forward(self, *, x: Tensor) -> Tensor:
        return self.run(x)


class Raises(Base):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(self.run)


class AsksWhatInputHas(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x) + (1 if hasattr(x, "boxes") else 0)


class ComparesTypes(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x) + (1 if type(x) is Tensor else 0)


class AsksGradMode(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(x) + (1 if torch.is_grad_enabled() else 0)


class CatchesItsErrors(Base):
    def forward(self, x: Tensor) -> Tensor:
        try:
            x = x * 2 if x.shape[0] > 2 else x
        except Exception:
            x = x * 3
        return self.run(x)


class WritesToAChild(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.conv.seen = x
        return self.run(x)


@torch.no_grad()
def helper(model: Base, x: Tensor) -> Tensor:
    return model.run(x)


REASONS = {
    BranchOnData: "TraceError",
    BranchOnShape: "TraceError",
    BranchOnType: "asks for the type of its inputs",
    PythonRandom: "draws random numbers",
    TorchRandom: "draws random numbers",
    OwnTensor: "makes tensors of its own",
    Counts: "changes self.count",
    Collects: "changes self.seen",
    Prints: "prints",
    NoGrad: "switches grad mode",
    NoGradInHelper: "switches grad mode",
    NoGradDecorated: "decorated",
    Autocast: "switches autocast",
    Checkpointed: "activation checkpointing",
    KeywordOnly: "only be given by name",
    Raises: "NotImplementedError",
    AsksWhatInputHas: "asks what its inputs have",
    ComparesTypes: "asks for the type of its inputs",
    AsksGradMode: "asks for the grad mode",
    CatchesItsErrors: "branches on a value",
    WritesToAChild: "changes self.conv.seen",
}


@pytest.mark.parametrize("kind", REASONS, ids=lambda kind: kind.__name__)
def test_refused_with_a_reason_and_left_alone(kind: type[Base], capsys: pytest.CaptureFixture[str]) -> None:
    model = kind()
    before, state, seed = dict(vars(model)), random.getstate(), torch.get_rng_state()
    conv = dict(vars(model.conv))
    fused = convpool.fuse(model, inplace=True)
    report = convpool.fusion_report(model)
    assert [name for name, _ in report.untraceable] == [""]
    assert REASONS[kind] in report.untraceable[0][1]
    assert report.untraceable[0][1] in str(report)
    assert type(fused) is kind
    assert vars(model) == before
    assert vars(model.conv) == conv
    assert type(model.conv) is nn.Conv2d
    assert model.seen == []
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), seed)
    assert capsys.readouterr().out == ""


def test_a_forward_replaced_on_the_instance_is_refused() -> None:
    model = Base()
    model.forward = lambda x: x  # type: ignore[method-assign]
    assert trace(model, Base, True) == "forward was replaced on the instance"


def test_what_the_forward_reads_is_noted() -> None:
    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.names, self.unused = 0.5, ("a", 1), 3

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.run(x), self.p, self.training) * len(self.names)

    traced = trace(Net(), Net, True)
    assert isinstance(traced, Traced)
    assert traced.inputs == ("x",)
    noted = {(note.path, note.name): note.kept.value for note in traced.notes}
    assert noted.keys() == {("", name) for name in ("conv", "names", "p", "run", "training")}
    assert noted["", "p"] == 0.5
    assert noted["", "names"] == ("a", 1)


class Mode(Enum):
    ONE, TWO = 1, 2


class Reads(nn.Module):
    """Goes its way by attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.extra = nn.BatchNorm2d(3), nn.Sigmoid()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)])
        self.act, self.mode, self.table, self.nested = torch.tanh, Mode.ONE, {"scale": 1.0}, [[1.0]]
        self.settings = SimpleNamespace(shift=0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x)
        if self.extra is not None:
            x = self.extra(x)
        if self.mode is Mode.TWO or self.norm.training:
            x = -x
        if self.layers[0].bias is None:
            x = x + 10
        return self.act(x) * self.table["scale"] * self.nested[0][0] * getattr(self, "late", 1) + self.settings.shift


CHANGES: dict[str, Callable[[Any], object]] = {
    "a function": lambda m: setattr(m, "act", torch.sin),
    "an enum": lambda m: setattr(m, "mode", Mode.TWO),
    "a dict": lambda m: m.table.update(scale=2.0),
    "a list in a list": lambda m: m.nested[0].append(m.nested[0].pop() + 1),
    "a field of an object": lambda m: setattr(m.settings, "shift", 3.0),
    "an attribute that was missing": lambda m: setattr(m, "late", 5),
    "a layer more": lambda m: m.layers.append(nn.Flatten()),
    "a layer less": lambda m: m.layers.__delitem__(2),
    "no layer": lambda m: setattr(m, "extra", None),
    "no bias": lambda m: setattr(m.layers[0], "bias", None),
    "a layer's mode": lambda m: m.norm.train(),
    "an unread attribute": lambda m: setattr(m, "unread", 1),
    "another layer": lambda m: m.layers.__setitem__(2, nn.MaxPool2d(3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_read_and_changed_since_leads_to_the_original_forward(change: str) -> None:
    fused = convpool.fuse(Reads().eval())
    plain = convpool.unfuse(fused)
    forward = vars(fused)["_convpool_forwards"][False]
    x = torch.randn(2, 3, 9, 9)
    assert forward.holds(fused)
    torch.testing.assert_close(fused(x), plain(x))
    for model in (fused, plain):
        CHANGES[change](model)
    assert forward.holds(fused) == (change in ("an unread attribute", "another layer"))
    torch.testing.assert_close(fused(x), plain(x))


def test_methods_of_submodules_keep_their_own_mode() -> None:
    """A submodule's method runs inside the trace, so the graph holds for that submodule's mode only."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = 0.5

        def drop(self, x: Tensor) -> Tensor:
            return F.dropout(x, self.p, self.training)

        def forward(self, x: Tensor) -> Tensor:
            return x

    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner.drop(self.run(x))

    fused = convpool.fuse(Net().eval())
    plain = convpool.unfuse(fused)
    x = torch.randn(1, 3, 8, 8)
    for change in (
        lambda m: m.train(),
        lambda m: m.inner.eval(),
        lambda m: setattr(m.train().inner, "p", 1.0),
    ):
        outputs = []
        for m in (fused, plain):
            change(m)
            torch.manual_seed(0)
            outputs.append(m(x))
        torch.testing.assert_close(*outputs)


def test_none_takes_the_original_way() -> None:
    class Net(Base):
        def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
            y = self.run(x)
            return y if mask is None else y * mask

    fused = convpool.fuse(Net())
    x = torch.randn(1, 3, 8, 8)
    assert len(convpool.fusion_report(fused).fused) == 1
    torch.testing.assert_close(fused(x, None), convpool.unfuse(fused)(x, None))
    torch.testing.assert_close(fused(x, mask=torch.zeros(())), fused(x, None) * 0)


def test_classes_that_cannot_be_derived_from_stay() -> None:
    class Final(Base):
        def __init_subclass__(cls) -> None:
            raise RuntimeError("final")

        def forward(self, x: Tensor) -> Tensor:
            return self.run(x)

    class FinalSequential(nn.Sequential):
        def __init_subclass__(cls) -> None:
            raise RuntimeError("final")

    model = nn.Sequential(Final(), FinalSequential(nn.Conv2d(4, 4, 2), nn.ReLU(), nn.MaxPool2d(2)))
    fused = convpool.fuse(model)
    assert [type(m) for m in fused.modules()] == [type(m) for m in model.modules()]
    x = torch.randn(1, 3, 12, 12)
    torch.testing.assert_close(fused(x), model(x))


def test_buffers_and_parameters_are_read_at_every_call() -> None:
    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("a", torch.ones(1))
            self.b = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.run(x) * (self.a + self.a) + 2 * self.b

    fused = convpool.fuse(Net())
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        fused.a.fill_(3)
        fused.b = nn.Parameter(torch.full((1,), 5.0))
    assert len(convpool.fusion_report(fused).fused) == 1
    torch.testing.assert_close(fused(x), convpool.unfuse(fused)(x))
