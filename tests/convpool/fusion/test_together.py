"""Fused models under what people put around a model: autocast, compile, DDP, checkpointing, export and the like."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn  # else DDP does, and this module keeps the group; see mnistfast's Ranks
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import convpool
from convpool.functional import conv_relu_max_pool2d


class Net(nn.Module):
    """A run in a Sequential and one, with a norm, across a border and in functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.block(self.stem(x))), 2)
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    nn.init.normal_(model.block[1].weight)
    nn.init.normal_(model.block[1].running_mean, std=0.2)
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def losses(model: nn.Module, x: Tensor, steps: int = 3) -> list[float]:
    """Losses of a few steps of training, each in eval mode (all runs fused) but the first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = []
    for step in range(steps):
        model.train(step == 0)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), torch.arange(len(x)) % 4)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def gradients(model: nn.Module, y: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), grads, strict=True))


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        error = (got[name] - value).abs().max() / value.abs().max()
        assert error <= tolerance, f"{name}: {error:.1e}"


def test_training_steps_as_unfused(model: nn.Module, x: Tensor, backend: str) -> None:
    fused = convpool.fuse(model)
    assert losses(fused, x) == pytest.approx(losses(model, x), rel=1e-5)


def test_autocast_and_grad_scaler(model: nn.Module, x: Tensor) -> None:
    """bfloat16 has 8 bits: 4e-3 a rounding; eager rounds between conv, norm and pool, the fused op does not."""
    outputs = []
    for m in (model.eval(), convpool.fuse(model).eval()):
        scaler = torch.amp.GradScaler("cpu")
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m(x)
            loss = F.cross_entropy(y, torch.arange(4))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert y.dtype == torch.bfloat16
        outputs.append({"y": y.detach().float()} | {name: p.detach() for name, p in m.named_parameters()})
    assert_close(outputs[1], outputs[0], 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compile(model: nn.Module, x: Tensor, training: bool) -> None:
    """Without a graph break: fullgraph."""
    fused = convpool.fuse(model).train(training)
    compiled = torch.compile(copy.deepcopy(fused), fullgraph=True, backend="aot_eager")
    y = compiled(x)
    expected = fused(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert_close(gradients(compiled._orig_mod, y), gradients(fused, expected), 1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(model: nn.Module, x: Tensor, backend: str, reentrant: bool) -> None:
    fused = convpool.fuse(model).eval()
    direct = gradients(fused, fused(x))
    fused.zero_grad()
    checkpoint(fused, x.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    assert_close({n: p.grad for n, p in fused.named_parameters() if p.grad is not None}, direct, 1e-6)


def test_functional_call_and_per_sample_gradients(model: nn.Module, x: Tensor, backend: str) -> None:
    fused = convpool.fuse(model).eval()
    values = {name: p.detach() * 1.5 for name, p in fused.named_parameters()}
    expected = torch.func.functional_call(model.eval(), values, (x,))
    torch.testing.assert_close(torch.func.functional_call(fused, values, (x,)), expected, rtol=1e-5, atol=1e-5)

    def loss(m: nn.Module) -> object:
        return lambda values, sample: torch.func.functional_call(m, values, (sample[None],)).square().sum()

    fused_grads, grads = (torch.func.vmap(torch.func.grad(loss(m)), (None, 0))(values, x) for m in (fused, model))
    assert_close(fused_grads, grads, 1e-4)


def test_averaged_model(model: nn.Module, x: Tensor) -> None:
    outputs = []
    for m in (model, convpool.fuse(model)):
        average = torch.optim.swa_utils.AveragedModel(m)
        for _ in range(2):
            losses(m, x, steps=1)
            average.update_parameters(m)
        torch.optim.swa_utils.update_bn([x], average)
        outputs.append(average.eval()(x))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)


def test_parametrizations_before_and_after(model: nn.Module, x: Tensor, backend: str) -> None:
    class LowRank(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.randn(len(weight), 2))
            self.b = nn.Parameter(torch.randn(2, weight[0].numel()))

        def forward(self, weight: Tensor) -> Tensor:
            return weight + (self.a @ self.b).view_as(weight)

    def add(m: nn.Module) -> nn.Module:
        torch.manual_seed(2)
        parametrize.register_parametrization(m.stem[0], "weight", LowRank(m.stem[0].weight))
        nn.utils.parametrizations.weight_norm(m.block[0])
        return m

    before = convpool.fuse(add(copy.deepcopy(model))).eval()
    after = add(convpool.fuse(model)).eval()
    expected = add(model).eval()
    for fused in (before, after):
        assert len(convpool.fusion_report(fused).fused) == 2
        torch.testing.assert_close(fused(x), expected(x), rtol=1e-5, atol=1e-5)
        assert_close(gradients(fused, fused(x)), gradients(expected, expected(x)), 1e-4)
    parametrize.remove_parametrizations(before.stem[0], "weight")
    torch.testing.assert_close(before(x), expected(x), rtol=1e-5, atol=1e-5)


def test_export_of_the_plain_twin(model: nn.Module, x: Tensor) -> None:
    fused = convpool.fuse(model).eval()
    exported = torch.export.export(convpool.unfuse(fused), (x,))
    assert "convpool" not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), fused(x), rtol=1e-5, atol=1e-5)


def test_symbolic_trace_records_the_op(model: nn.Module, x: Tensor) -> None:
    fused = convpool.fuse(model).eval()
    traced = torch.fx.symbolic_trace(fused)
    assert [n.target for n in traced.graph.nodes].count(conv_relu_max_pool2d) == 2
    torch.testing.assert_close(traced(x), fused(x))


def test_a_traced_model_can_be_fused(model: nn.Module, x: Tensor) -> None:
    traced = torch.fx.symbolic_trace(model.eval())
    fused = convpool.fuse(traced)
    assert len(convpool.fusion_report(fused).fused) == 2
    for m in (fused, copy.deepcopy(fused), convpool.unfuse(fused)):
        torch.testing.assert_close(m(x), model(x), rtol=1e-5, atol=1e-5)
    assert type(copy.deepcopy(fused)).forward.__wrapped__  # deepcopy keeps it fused


def test_feature_extraction(model: nn.Module, x: Tensor) -> None:
    feature_extraction = pytest.importorskip(
        "torchvision.models.feature_extraction", reason="needs the extra `transfer` (torchvision)"
    )
    fused, model = convpool.fuse(model).eval(), model.eval()
    names = feature_extraction.get_graph_node_names(fused)[1]
    assert names.count("fc") == 1
    stem = "stem.conv_relu_max_pool2d"
    y = feature_extraction.create_feature_extractor(fused, [stem, "fc"])(x)
    torch.testing.assert_close(y[stem], model.stem(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y["fc"], model(x), rtol=1e-5, atol=1e-5)
    inner = feature_extraction.create_feature_extractor(
        model, ["stem.1", "fc"]
    )  # a node inside a run: extract, then fuse
    torch.testing.assert_close(convpool.fuse(inner)(x)["stem.1"], inner(x)["stem.1"])


def test_data_parallel_wrapper_and_signature(model: nn.Module, x: Tensor) -> None:
    import inspect

    fused = convpool.fuse(model).eval()
    assert str(inspect.signature(fused.forward)) == str(inspect.signature(model.forward))
    torch.testing.assert_close(nn.DataParallel(fused)(x), fused(x))


def _train_in_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = Net()
        shards = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)).chunk(2)
        for name, m in (("plain", copy.deepcopy(model)), ("fused", convpool.fuse(model))):
            _train_together(m, shards[rank])
            torch.save(m.state_dict(), f"{folder}/{name}{rank}.pt")
    finally:
        dist.destroy_process_group()


def _train_together(model: nn.Module, shard: Tensor) -> None:
    """The wrapper ends with this call and before the group, which it would keep."""
    losses(nn.parallel.DistributedDataParallel(model), shard)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_distributed_data_parallel(tmp_path: Path) -> None:
    """Two processes: the gradients are averaged, so both end with one state, that of the unfused model."""
    mp.spawn(_train_in_process, (str(tmp_path),), nprocs=2)
    states = {f.stem: torch.load(f, weights_only=True) for f in tmp_path.glob("*.pt")}
    assert states.keys() == {"plain0", "plain1", "fused0", "fused1"}
    parameters = dict(Net().named_parameters())
    for name in parameters:
        torch.testing.assert_close(states["fused0"][name], states["fused1"][name], rtol=0, atol=0)
    for name, value in states["plain0"].items():
        torch.testing.assert_close(states["fused0"][name], value, rtol=1e-4, atol=1e-4)
