"""Runs whose norm is in training mode: fused where a backend serves batch statistics, torch's layers elsewhere."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import convpool
from convpool.batchnorm import operators
from convpool.geometry import Geometry
from convpool.protocol import Plan
from tests.convpool.batchnorm.layers import by_each_backend
from tests.convpool.own_backend import OwnBackend

pytestmark = pytest.mark.usefixtures("one_thread")


class Written(nn.Module):
    """ReLU and pool in either order, modules and functions, a block across a border, a conv that pads in a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=None)
        self.block = nn.Sequential(
            nn.Conv2d(6, 6, 3, bias=False, padding=1, padding_mode="circular"), nn.BatchNorm2d(6)
        )
        self.conv3, self.norm3 = (
            nn.Conv2d(6, 4, 3, groups=2),
            nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        )
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = self.relu(self.pool(self.block(x)))
        x = self.pool(self.relu(self.norm3(self.conv3(x))))
        return self.fc(x.mean((2, 3)))


def in_order() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 6, 3, stride=2), nn.Identity(), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.LazyLinear(3)),
    )


MODELS = {"written": (Written, 3), "in order": (in_order, 2)}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[request.param][0]()
    model(torch.randn(2, 3, 20, 19))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    model.runs = MODELS[request.param][1]
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 20, 19, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def calls(monkeypatch) -> list[bool]:
    """An entry for each call that our operator computes, in training mode: whether it keeps the winners."""
    made: list[bool] = []
    forward = operators.forward
    monkeypatch.setattr(operators, "forward", lambda *args: made.append(args[-1]) or forward(*args))
    return made


def simple(norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm or nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))


@by_each_backend
def test_a_step_of_training_is_that_of_the_unfused_model(model, x, backend, calls) -> None:
    """Outputs, gradients and buffers; 2e-6 was seen. In eval mode one of these gradients is 0 but for rounding."""
    fused = convpool.fuse(model)
    differences = convpool.verify(model, fused, x)
    assert all(row.relative <= 1e-4 for row in differences.rows if row.mode == "training"), str(differences)
    assert calls.count(True) >= model.runs
    for m in (model, fused):
        m.train()
        for step in range(3):
            m(x + step)
    for (name, expected), got in zip(model.named_buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_in_float64_the_two_agree_to_its_rounding(model, x) -> None:
    with convpool.use_backend("reference"):
        fused = convpool.fuse(model)
        assert convpool.verify(model, fused, x, dtype=torch.float64).within(1e-11)


@by_each_backend
def test_the_report_counts_what_then_runs_as_one_op(model, x, backend, calls) -> None:
    fused = convpool.fuse(model)
    for m in (model, fused):
        assert len(convpool.fusion_report(m).fused) == model.runs
        assert len(convpool.fusion_report(m).for_input(x).fused) == model.runs
    calls.clear()
    fused(x)
    assert calls == [True] * model.runs


def test_where_no_backend_serves_nothing_is_said_to_be_fused(model, x, calls) -> None:
    fused = convpool.fuse(model).double()
    report = convpool.fusion_report(fused)
    assert report.fused == []
    assert all("batch statistics (training mode): cpu: dtype torch.float64" in str(row.reason) for row in report.rows)
    assert convpool.fusion_report(fused.eval()).fused  # but not all: one norm keeps no running statistics
    fused.train()
    torch.testing.assert_close(fused(x.double()), copy.deepcopy(model).double()(x.double()), rtol=0, atol=0)
    assert calls == []


class Picky(OwnBackend):
    def batch_statistics(self, geometry: Geometry, plan: Plan, dx: bool) -> Plan | str:
        if dx:
            return "we have no dx"
        return plan if geometry.conv_height > 30 else "so small a picture is not for us"


@pytest.mark.parametrize("first", ["learns", "is frozen", "has no parameters"])
def test_whether_the_input_has_a_gradient_decides_as_it_is(first, calls) -> None:
    """The report, with an input and without, and the call agree."""
    before = nn.Tanh() if first == "has no parameters" else nn.Conv2d(3, 3, 1).requires_grad_(first == "learns")
    norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    x, expected = torch.randn(2, 3, 34, 34), [] if first == "learns" else [True]
    convpool.register_backend("own", Picky, devices=("cpu",))
    try:
        fused = convpool.fuse(nn.Sequential(before, *norm))
        reports = convpool.fusion_report(fused), convpool.fusion_report(fused).for_input(x)
        calls.clear()
        fused(x)
        assert calls == expected
        for report in reports:
            assert len(report.fused) == len(expected)
            assert expected or "own: we have no dx" in str(report)
        assert convpool.fusion_report(fused).for_input(x.requires_grad_()).fused == []
    finally:
        convpool.unregister_backend("own")


def test_an_input_that_no_backend_takes_is_not_said_to_be_fused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    convpool.register_backend("own", Picky, devices=("cpu",))
    try:
        report = convpool.fusion_report(model)
        small, large = (report.for_input(torch.randn(2, 3, side, side)) for side in (9, 34))
    finally:
        convpool.unregister_backend("own")
    assert [len(r.fused) for r in (report, small, large)] == [1, 0, 1]
    assert "batch statistics (training mode): own: so small a picture is not for us" in str(small.rows[0].reason)
    assert "0 of 1 runs fusable in training mode" in str(small)


@by_each_backend
def test_for_input_measures_what_is_kept(backend) -> None:
    """torch keeps z, the norm's output and 8 bytes an output; the op one, and a few times the weight's size."""
    x, outputs = torch.randn(4, 3, 34, 34), 4 * 4 * 16 * 16
    model, z = simple(), 4 * 4 * 32 * 32 * 4
    before = copy.deepcopy(model.state_dict())
    for m in (model, convpool.fuse(model)):
        (row,) = convpool.fusion_report(m).for_input(x).rows
        assert row.bytes_eager >= 2 * z + 8 * outputs
        assert outputs < row.bytes_fused < outputs + 4 * model[0].weight.nbytes
        assert str(row.plan).startswith(backend)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@by_each_backend
@pytest.mark.parametrize(
    "norm",
    [nn.SyncBatchNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.BatchNorm3d(4)],
    ids=lambda norm: type(norm).__name__,
)
def test_other_norms_stay(norm, backend) -> None:
    model = simple(norm)
    (row,) = convpool.fusion_report(model).rows
    assert row.reason == f"{type(norm).__name__} is not BatchNorm2d"
    assert type(convpool.fuse(model)) is nn.Sequential
    assert not hasattr(type(convpool.fuse(model)), "convpool_base")


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(self.norm(self.conv(x))), 2)


def test_another_pool_is_named_in_training_mode_too() -> None:
    """As in Inception: no backend is asked about a pool of which nothing but the name is known."""
    (row,) = convpool.fusion_report(convpool.fuse(Averaging())).rows
    assert row.reason == "avg_pool2d is not MaxPool2d"


@by_each_backend
def test_sync_batch_norm_put_in_after_fuse_is_used(backend, calls) -> None:
    fused = nn.SyncBatchNorm.convert_sync_batchnorm(convpool.fuse(simple()))
    assert [row.reason for row in convpool.fusion_report(fused).rows] == ["SyncBatchNorm is not BatchNorm2d"]
    fused(torch.randn(2, 3, 9, 9))
    assert calls == []


@by_each_backend
def test_a_hook_on_the_norm_sees_its_tensors(backend, calls) -> None:
    model, x, seen = simple(), torch.randn(2, 3, 9, 9), []
    fused = convpool.fuse(model)
    hook = fused[1].register_forward_hook(lambda _, args, y: seen.append(y.detach().clone()))
    assert [row.reason for row in convpool.fusion_report(fused).rows] == ["a hook on 1"]
    fused(x)
    torch.testing.assert_close(seen, [model[1](model[0](x)).detach()])
    hook.remove()
    fused(x)
    assert calls == [True]


@by_each_backend
def test_each_call_looks_at_the_norm_as_it_is(backend, calls) -> None:
    """In training mode, frozen, with another momentum and eps, and replaced."""
    model, x = simple(), torch.randn(2, 3, 9, 9)
    fused = convpool.fuse(model)
    changes = (
        (lambda m: m.train(), 1),
        (lambda m: m[1].eval(), 1),
        (lambda m: m.train() and setattr(m[1], "momentum", 0.7), 2),
        (lambda m: setattr(m[1], "eps", 1.0), 3),
        (lambda m: setattr(m, "1", nn.BatchNorm2d(4, momentum=None)), 4),
        (lambda m: setattr(m, "1", nn.Identity()), 4),
    )
    for change, expected in changes:
        change(model), change(fused)
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dict(fused.named_buffers()), dict(model.named_buffers()))
        assert len(calls) == expected


@by_each_backend
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(model, x, reentrant, backend) -> None:
    """The statistics move twice, as with torch's layers, and the steps after that agree."""
    gradients = []
    for m in (model, convpool.fuse(model)):
        checkpoint(m, x.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
        gradients.append([p.grad for p in m.parameters()] + list(m.buffers()))
    for ours, theirs in zip(*gradients[::-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@by_each_backend
def test_compile(model, x, backend) -> None:
    """Without a graph break, in training mode, buffers included."""
    torch.compiler.reset()
    fused = convpool.fuse(model)
    compiled = torch.compile(copy.deepcopy(fused), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), fused(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(list(compiled.buffers()), list(fused.buffers()), rtol=1e-4, atol=1e-5)


@by_each_backend
def test_symbolic_trace_records_the_layers(model, x, backend) -> None:
    """They follow train() and eval() and count batches, which a node for the op would not."""
    traced = torch.fx.symbolic_trace(convpool.fuse(model))
    for training in (True, False):
        traced.train(training), model.train(training)
        torch.testing.assert_close(traced(x), model(x))
    assert not [node for node in traced.graph.nodes if "convpool" in str(getattr(node.target, "__module__", ""))]


@by_each_backend
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit")
def test_export_and_torchscript_of_the_plain_twin(x, backend) -> None:
    fused = convpool.fuse(simple())
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot record"):
        torch.jit.trace(fused, x)
    exported = torch.export.export(convpool.unfuse(fused), (x,))
    assert "convpool" not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), copy.deepcopy(fused)(x), rtol=1e-4, atol=1e-4)


@by_each_backend
def test_half_models_with_norms_in_float32_are_explained(backend) -> None:
    """A common way to train in bfloat16; in eval mode too, where the norm is part of the conv."""
    model = simple().to(torch.bfloat16)
    model[1].float()
    x = torch.randn(2, 3, 9, 9, dtype=torch.bfloat16)
    with convpool.use_backend("auto"):
        for training in (True, False):
            (row,) = convpool.fusion_report(convpool.fuse(model.train(training))).for_input(x).rows
            assert row.fused is not training
            assert "bfloat16" in f"{row.reason} {row.plan}"


def test_autocast_leaves_the_layers_to_torch_and_says_so(model, x) -> None:
    fused = convpool.fuse(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = convpool.fusion_report(fused)
        torch.testing.assert_close(fused(x), model(x), rtol=0, atol=0)
    assert report.fused == []
    assert all("bfloat16" in str(row.reason) for row in report.rows)
