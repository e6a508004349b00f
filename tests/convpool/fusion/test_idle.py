"""Where nothing fuses, a fused model is the plain one: a look at the layers, and then many calls without."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convpool
from convpool.fusion import chain
from convpool.fusion.rewrite import _IDLE, _IDLE_CALLS

pytestmark = pytest.mark.usefixtures("one_thread")

CHANNELS = 32  # batch statistics of that many are torch's, under `auto`


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(CHANNELS, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.0)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return F.max_pool2d(F.relu(self.drop(self.norm(self.conv(x)))), 2) * scale


class InOrder(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(CHANNELS, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.0)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)


class Copying(Written):
    """It copies all that it holds, as torch.fx.GraphModule does."""

    def __deepcopy__(self, memo: dict[int, object]) -> "Copying":
        copied = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied


@pytest.fixture(params=[Written, InOrder], ids=["written", "in order"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, CHANNELS, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each look at a chain's layers, and one for each run that is then fused."""
    seen: list[str] = []
    ask, fused = chain.has_any_global_hook, chain.Run.fused
    monkeypatch.setattr(chain, "has_any_global_hook", lambda: seen.append("look") or ask())
    monkeypatch.setattr(chain.Run, "fused", lambda run, x: seen.append("fused") or fused(run, x))
    return seen


@pytest.fixture
def idle(model: nn.Module, x: Tensor, looks: list[str]) -> nn.Module:
    """The fused model after a first call, which found nothing to fuse."""
    fused = convpool.fuse(model)
    fused(x)
    assert looks == ["look"]
    looks.clear()
    return fused


def test_after_a_look_many_calls_need_none(idle: nn.Module, x: Tensor, looks: list[str]) -> None:
    for _ in range(_IDLE_CALLS):
        idle(x)
    assert looks == []
    idle(x)
    assert looks == ["look"]


def test_values_gradients_and_buffers_are_the_plain_models(model: nn.Module, x: Tensor) -> None:
    """To the last bit: the layers are the same."""
    results = []
    for m in (model, convpool.fuse(model)):
        for _ in range(3):
            y = m(x)
            y.square().sum().backward()
        results.append([y, *(p.grad for p in m.parameters()), *m.buffers()])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


CHANGES: dict[str, tuple[Callable[[nn.Module, Tensor], object], list[str]]] = {
    "eval mode": (lambda m, x: m.eval()(x), ["look", "fused"]),
    "another shape": (lambda m, x: m(x[:1]), ["look"]),
    "another type": (lambda m, x: m.double()(x.double()), ["look"]),
    "a gradient of x": (lambda m, x: m(x.clone().requires_grad_()), ["look"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_kind_of_call_is_looked_at(change: str, idle: nn.Module, x: Tensor, looks: list[str]) -> None:
    call, expected = CHANGES[change]
    call(idle, x)
    assert looks == expected


def test_another_backend_is_asked_at_once(idle: nn.Module, x: Tensor, looks: list[str]) -> None:
    with convpool.use_backend("reference"):
        idle(x)
    assert looks == ["look", "fused"]


def test_without_grad_mode_x_has_no_gradient(model: nn.Module, x: Tensor, looks: list[str]) -> None:
    fused, x = convpool.fuse(model), x.requires_grad_()
    fused(x)
    with torch.no_grad():
        fused(x)
    assert looks == ["look", "look"]


def test_autocast_is_another_kind_of_call(idle: nn.Module, x: Tensor, looks: list[str]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        idle(x), idle(x)
    idle(x)
    assert looks == ["look", "look"]


@pytest.mark.parametrize("change", ["norm frozen alone", "norm replaced"])
def test_what_only_a_look_shows_is_seen_at_the_next_one(
    change: str, idle: nn.Module, x: Tensor, looks: list[str]
) -> None:
    plain = convpool.unfuse(idle)
    idle(x), plain(x), looks.clear()  # a copy forgets, and so does what it is made of
    for m in (idle, plain):
        if change == "norm frozen alone":
            m.norm.eval()
        else:
            m.norm = nn.Identity()
    for _ in range(_IDLE_CALLS):
        torch.testing.assert_close(idle(x), plain(x), rtol=0, atol=0)
    assert looks == []
    torch.testing.assert_close(idle(x), plain(x), rtol=1e-4, atol=1e-5)
    assert looks == ["look", "fused"]


def test_after_an_interruption_the_next_call_fuses(model: nn.Module, x: Tensor, looks: list[str]) -> None:
    """A hook, an active dropout, a global hook: while it is there, each call looks whether it still is."""
    fused = convpool.fuse(model)
    with convpool.use_backend("reference"):
        hook = fused.norm.register_forward_hook(lambda *_: None)
        fused(x), fused(x)
        hook.remove()
        fused(x)
        fused.drop.p = 0.5
        fused(x)
        fused.drop.p = 0.0
        fused(x)
        hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
        fused(x)
        hook.remove()
        fused(x)
    assert looks == ["look", "look", "look", "fused", "look", "look", "fused", "look", "look", "fused"]


def test_a_call_with_more_than_one_argument_looks(x: Tensor, looks: list[str]) -> None:
    torch.manual_seed(0)
    fused = convpool.fuse(Written())
    for _ in range(2):
        torch.testing.assert_close(fused(x, 2.0), 2 * fused(x=x), rtol=0, atol=0)
    assert looks == ["look", "look"]  # those with x alone: the others do not go the way that was traced


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": lambda m: torch.load(_saved(m), weights_only=False),
    "unfuse": convpool.unfuse,
    "unfuse in place": lambda m: convpool.unfuse(m, inplace=True),
    "fuse": convpool.fuse,
}


def _saved(model: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("kind", [Written, InOrder, Copying])
def test_copies_know_nothing_of_it(kind: type[nn.Module], copied: str, x: Tensor, looks: list[str]) -> None:
    fused = convpool.fuse(kind())
    fused(x)
    assert _IDLE in vars(fused)
    other = COPIES[copied](fused)
    assert _IDLE not in vars(other)
    looks.clear()
    torch.testing.assert_close(other(x), convpool.unfuse(fused)(x), rtol=0, atol=0)
    assert looks == ([] if "unfuse" in copied else ["look"])


@pytest.mark.slow
@pytest.mark.parametrize("calls_before", [0, 1])
def test_the_compiler_sees_nothing_of_it(calls_before: int, model: nn.Module, x: Tensor) -> None:
    """Neither a graph break, nor a second graph when what is known of the calls changes."""
    torch.compiler.reset()
    plain, fused = copy.deepcopy(model), convpool.fuse(model)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for eager_calls in (calls_before, 1, _IDLE_CALLS):
            for _ in range(eager_calls):
                fused(x), plain(x)
            assert (_IDLE in vars(fused)) == (eager_calls > 0)
            torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-6)


def test_tracers_and_vmap_see_the_layers(model: nn.Module, x: Tensor) -> None:
    model.norm = nn.BatchNorm2d(4, track_running_stats=False)  # to vmap, buffers that change are an error
    fused = convpool.fuse(model)
    fused(x)
    assert _IDLE in vars(fused)
    names = {str(node.target) for node in torch.fx.symbolic_trace(fused).graph.nodes}
    assert {"conv", "norm", "drop"} <= names
    both = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.vmap(fused)(both), torch.vmap(model)(both), rtol=1e-4, atol=1e-5)
