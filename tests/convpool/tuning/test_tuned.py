"""`tune`: what it excludes, reaches, keeps and says, by a clock that a plan of our own moves on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convpool
from convpool import choices, tune
from tests.convpool.own_backend import OwnBackend
from tests.convpool.tables import CPU


class Clock:
    """Each reading takes 10 ms, which is then what a call takes: by any plan the same, unless a call adds to it."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1e-2
        return self.now


class Disturbed(OwnBackend):
    """In force for float32 on CPUs; `disturb` is told the plan of each forward call, and gives what y is then."""

    def __init__(self, disturb: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self._disturb = disturb

    def forward(self, *given: object, **named: object) -> tuple[Tensor, Tensor]:
        y, code = super().forward(*given, **named)  # type: ignore[arg-type]
        return self._disturb(self.met[-1], y), code


@contextmanager
def disturbed(disturb: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    convpool.register_backend("own", lambda: Disturbed(disturb), devices=("cpu",))
    try:
        yield
    finally:
        convpool.unregister_backend("own")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CONVPOOL_CACHE", str(tmp_path))
    torch.use_deterministic_algorithms(False)
    choices.forget()
    yield
    choices.forget()


def layers(*channels: int) -> nn.Sequential:
    """Of each call's output the next one's input has half the size, less one."""
    pairs = zip((1, *channels), channels, strict=False)
    return nn.Sequential(*(convpool.ConvReLUMaxPool2d(i, o, 3) for i, o in pairs)).eval()


def call_of(model: nn.Sequential, x: Tensor) -> convpool.Plan:
    with torch.set_grad_enabled(model.training):
        return convpool.explain(x, model[0].weight, model[0].bias)


def slow(clock: Clock) -> Callable[[str, Tensor], Tensor]:
    def disturb(_: str, y: Tensor) -> Tensor:
        clock.now += 0.05
        return y

    return disturb


@pytest.mark.parametrize("why", ["ParityError: wrong result", "RuntimeError: out of order"])
def test_a_plan_that_is_wrong_or_raises_is_excluded_and_named(why: str) -> None:
    """The plan in force; the first forward call, by which the calls are recorded, gets through."""
    model, x = layers(4), torch.randn(2, 1, 18, 18)
    met = []

    def disturb(plan: str, y: Tensor) -> Tensor:
        met.append(plan)
        if len(met) == 1:
            return y
        if why.startswith("ParityError"):
            return y + (y == y.max())
        raise RuntimeError("out of order")

    with disturbed(disturb):
        assert call_of(model, x).call == "own/wide"
        found = tune(model, x, clock=Clock())
        after = call_of(model, x)
    (choice,) = found.choices.by_call.values()
    assert choice.plan == after.call != "own/wide"
    assert after.measured
    assert "own/wide" not in choice.seconds
    assert [f": own/wide: {why}" in line for line in found.excluded] == [True]
    assert "instead of own/wide, which is excluded" in str(found)


@pytest.mark.parametrize("store", [True, False])
def test_a_slow_plan_in_force_is_replaced_where_its_call_was_measured(store: bool) -> None:
    model, x, clock = layers(4), torch.randn(2, 1, 18, 18), Clock()
    with disturbed(slow(clock)):
        found = tune(model, x, clock=clock, store=store)
        ((key, choice),) = found.choices.by_call.items()
        assert choice.plan != "own/wide"
        assert choice.seconds["own/wide"] == pytest.approx(0.06)
        assert key.endswith(f" inference threads={torch.get_num_threads()}")
        assert not found.excluded
        assert call_of(model, x).measured is store
        with choices.use(found.choices):
            assert call_of(model, x).call == choice.plan
            others = call_of(layers(4).train(), x), call_of(model, x.to(memory_format=torch.channels_last))
            bigger = call_of(model, torch.randn(3, 1, 18, 18))
            assert {plan.call for plan in (*others, bigger)} == {"own/wide"}
    assert (choices.in_force(CPU) == found.choices) is store


def test_what_is_as_fast_as_the_plan_in_force_does_not_replace_it() -> None:
    model, x = layers(4), torch.randn(2, 1, 18, 18)
    with disturbed(lambda _, y: y):
        found = tune(model, x, clock=Clock())
    assert [choice.plan for choice in found.choices.by_call.values()] == ["own/wide"]
    assert "own/wide 10 ms stays" in found.lines[0]
    assert ": 0 changed" in str(found)


def test_calls_that_the_time_does_not_reach_are_named_and_keep_the_rule() -> None:
    """Three calls: the first one's width is 34, the others' 16 and 7; the last one's plan, met when the model runs and
    when it is checked, takes longer than there is time."""
    model, x, clock = layers(2, 3, 4), torch.randn(2, 1, 34, 34), Clock()
    met = []

    def disturb(plan: str, y: Tensor) -> Tensor:
        met.append(plan)
        if len(met) > 3 and y.shape[1] == 3:
            clock.now += 1e6
        return y

    with disturbed(disturb):
        found = tune(model, x, seconds=60, clock=clock)
        assert call_of(model, x).measured
        inner = model[0](x).detach()
        assert not call_of(model[1:].eval(), inner).measured
    assert len(found.choices) == 1
    assert [": not reached: own/" in line and line.endswith(" as before") for line in found.lines[:3]] == [
        False,
        True,
        True,
    ]
    assert found.lines[3].startswith("tuned 1 call in ")
    assert found.lines[3].endswith(" s: 0 changed; 2 not reached")


def test_training_calls_are_recorded_with_gradients() -> None:
    model, x = layers(2, 2).train(), torch.randn(2, 1, 18, 18)
    found = tune(model, x, clock=Clock())
    regimes = [key.rsplit(" ", 1)[0].split("weight=")[1].split(" ", 1)[1] for key in found.choices.by_call]
    assert regimes == ["training", "training dx"]


def test_what_is_not_tuned() -> None:
    x = torch.randn(2, 1, 18, 18)
    assert "calls no fused layer" in str(tune(nn.Flatten(), x, clock=Clock()))
    torch.use_deterministic_algorithms(True)
    found = tune(layers(2), x, clock=Clock())
    assert not found.choices
    assert "deterministic" in str(found)


def test_arguments_that_do_not_fit() -> None:
    x = torch.randn(2, 1, 18, 18)
    with pytest.raises(ValueError, match="seconds must be more than 0, got 0"):
        tune(layers(2), x, seconds=0)
    with pytest.raises(ValueError, match="replayed needs calls on a GPU, got one on cpu"):
        tune(layers(2), x, replayed=True)
    with pytest.raises(TypeError, match="example must be a tensor or a tuple of arguments, got list"):
        tune(layers(2), [x])  # type: ignore[arg-type]
