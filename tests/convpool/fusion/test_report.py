"""The report names every run, fused or not, and says why; with an input, what it saves."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convpool
from convpool.fusion.memory import kept_bytes


def reasons(model: nn.Module) -> list[str | None]:
    return [row.reason for row in convpool.fusion_report(model).rows]


def test_counts_are_those_of_the_model_before_and_after(model: nn.Module, expected_runs: int) -> None:
    assert len(convpool.fusion_report(model.eval()).fused) == expected_runs
    report = convpool.fusion_report(convpool.fuse(model))
    assert len(report.fused) == expected_runs
    assert report.applied
    assert f"{expected_runs} of {len(report.rows)} runs fused in eval mode" in str(report)


class WithReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.conv(x)
        return F.max_pool2d(F.relu(z), 2), z


class Indices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.pool(F.relu(self.conv(x)))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.conv2d(x, self.conv.weight, self.conv.bias)
        return F.max_pool2d(F.relu(z), 2) + F.max_pool2d(F.leaky_relu(self.conv(x)), 2)


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def run(conv: nn.Module, *rest: nn.Module) -> nn.Module:
    return nn.Sequential(conv, *rest)


CONV = nn.Conv2d(3, 4, 3)
NOT_FUSED = {
    "reader": (WithReader(), "the output of conv is also read by the module's output"),
    "indices": (Indices(), "the pool returns its indices"),
    "leaky function": (Functional(), "leaky_relu is not ReLU"),
    "GELU": (run(CONV, nn.GELU(), nn.MaxPool2d(2)), "GELU is not ReLU"),
    "ReLU6": (run(CONV, nn.ReLU6(), nn.MaxPool2d(2)), "ReLU6 is not ReLU"),
    "average": (run(CONV, nn.ReLU(), nn.AvgPool2d(2)), "AvgPool2d is not MaxPool2d"),
    "adaptive": (run(CONV, nn.ReLU(), nn.AdaptiveMaxPool2d(2)), "AdaptiveMaxPool2d is not MaxPool2d"),
    "1-d": (run(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.MaxPool1d(2)), "Conv1d is not Conv2d"),
    "3-d": (run(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.MaxPool3d(2)), "Conv3d is not Conv2d"),
    "GroupNorm": (run(CONV, nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2)), "GroupNorm is not BatchNorm2d"),
    "SyncBatchNorm": (run(CONV, nn.SyncBatchNorm(4), nn.ReLU(), nn.MaxPool2d(2)), "SyncBatchNorm is not BatchNorm2d"),
    "own forward": (run(OwnForward(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), "OwnForward has a forward of its own"),
    "fused layer": (
        run(convpool.ConvReLUMaxPool2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        "ConvReLUMaxPool2d has a forward of its own",
    ),
}


@pytest.mark.parametrize("name", NOT_FUSED)
def test_what_is_not_fused_says_why(name: str) -> None:
    model, reason = NOT_FUSED[name]
    assert reason in reasons(model)
    assert None not in reasons(model)
    assert reason in str(convpool.fusion_report(model))
    fused = convpool.fuse(model)
    assert [type(m) for m in fused.modules()] == [type(m) for m in model.modules()]


def test_norms_and_hooks_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).half()
    left = "batch statistics (training mode): cpu: dtype torch.float16: the kernels are written for float32"
    assert reasons(model) == [left]
    assert reasons(model.eval()) == [None]
    hook = model[2].register_forward_hook(lambda *_: None)
    assert reasons(model) == ["a hook on 2"]
    hook.remove()
    model[1].track_running_stats, model[1].running_mean, model[1].running_var = False, None, None
    assert reasons(model) == [left]


def test_hook_on_a_border_is_named() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.MaxPool2d(2))
    model[0].register_forward_pre_hook(lambda *_: None)
    assert reasons(model) == ["a hook on 0"]
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(convpool.fuse(model)(x), model(x))


def test_a_model_without_runs() -> None:
    report = convpool.fusion_report(nn.Linear(2, 2))
    assert report.rows == ()
    assert "no conv2d > ReLU > max-pool found" in str(report)


def test_for_input_measures_plan_and_memory() -> None:
    """z of 4 * 8 * 10 * 10 floats is kept by torch, with 8 bytes an output; the reference keeps a byte an output."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    x = torch.randn(4, 3, 12, 12)
    outputs = 4 * 8 * 5 * 5
    with convpool.use_backend("reference"):
        for m in (model, convpool.fuse(model)):
            (row,) = convpool.fusion_report(m).for_input(x).rows
            assert row.bytes_eager == 4 * 8 * 10 * 10 * 4 + 8 * outputs
            assert row.bytes_fused == outputs
            assert row.bytes_saved == row.bytes_eager - row.bytes_fused
            assert row.plan is not None
            assert row.plan.startswith("reference, reference plan")
            assert row.plan in str(convpool.fusion_report(m).for_input(x))


def test_for_input_leaves_the_model_alone() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3),
        nn.GELU(),
        nn.MaxPool2d(2),
    )
    before, seed = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    rows = convpool.fusion_report(model).for_input(torch.randn(1, 3, 16, 16, generator=torch.Generator())).rows
    assert [row.plan is None for row in rows] == [False, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), seed)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_kept_bytes_counts_storages_once() -> None:
    x, w = torch.randn(10, requires_grad=True), torch.randn(10)
    assert kept_bytes(lambda x: (x * w).exp() * w[:1], x) == 40 + 40  # w, a view of it, and what exp returned
    assert kept_bytes(lambda x: (x * w).exp() * w[:1], x, ignore=[w]) == 40
