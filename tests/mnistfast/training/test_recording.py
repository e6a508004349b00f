"""Replays of a recorded step are the step, and whatever would make a CUDA graph's differ from it shows."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convpool import ConvReLUMaxPool2d
from tests.mnistfast.training.recording import Recording, record, unnamed

STEPS, WARM, BATCH = 6, 2, 8


class Toy:
    """A training with dropout and an average, of which all that changes lies in tensors; `state` names them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.images, self.labels = torch.rand(STEPS * BATCH, 1, 10, 10), torch.arange(STEPS * BATCH) % 3
        self.order = torch.randperm(STEPS * BATCH)
        self.model = nn.Sequential(ConvReLUMaxPool2d(1, 4, 3), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3))
        self.averages = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.optimizer = torch.optim.Adam(self.model.parameters(), torch.tensor(0.0), fused=True, capturable=True)
        self.rates, self.shares = torch.linspace(0.01, 0.02, STEPS), torch.linspace(1.0, 0.5, STEPS)
        self.rate: Tensor | float = self.optimizer.param_groups[0]["lr"]
        self.losses, self.slot, self.within = torch.zeros(STEPS), torch.zeros(1, dtype=torch.int64), torch.arange(BATCH)
        self.calls = 0  # for the planted faults: a count in Python

    def state(self) -> dict[str, Tensor]:
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        kept = [*self.model.parameters(), *self.averages, *moments, self.losses, self.slot, self.rate]
        return {str(place): tensor for place, tensor in enumerate(kept)}

    def step(self) -> None:
        self.choose_rate()
        loss = self.loss(self.images_of_step())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.keep(loss.detach())
        self.move_averages()
        self.slot += 1
        self.calls += 1

    def choose_rate(self) -> None:
        self.rate.copy_(self.rates.index_select(0, self.slot).squeeze())

    def images_of_step(self) -> Tensor:
        return self.order.index_select(0, self.slot * BATCH + self.within)

    def loss(self, index: Tensor) -> Tensor:
        return F.cross_entropy(self.model(self.images.index_select(0, index)), self.labels.index_select(0, index))

    def keep(self, loss: Tensor) -> None:
        self.losses.index_copy_(0, self.slot, loss.view(1))

    def move_averages(self) -> None:
        share = self.shares.index_select(0, self.slot).squeeze()
        for average, parameter in zip(self.averages, self.model.parameters(), strict=True):
            average.lerp_(parameter.detach(), share)


def recorded(toy: Toy) -> Recording:
    """The step after the warm-up, in which an optimiser makes its state."""
    torch.manual_seed(1)
    for _ in range(WARM):
        toy.step()
    return record(toy.step)


def replays_are_calls(kind: type[Toy]) -> bool:
    called, replayed = kind(), kind()
    torch.manual_seed(1)
    for _ in range(STEPS):
        called.step()
    recording = recorded(replayed)
    for _ in range(STEPS - WARM):
        recording.replay()
    return all(torch.equal(tensor, replayed.state()[name]) for name, tensor in called.state().items())


def test_replays_are_calls() -> None:
    assert replays_are_calls(Toy)


def test_a_step_with_nothing_to_report() -> None:
    toy = Toy()
    recording = recorded(toy)
    assert not recording.host_reads
    assert not unnamed(recording.written, toy.state().values())
    assert len(recording.written) == len(toy.state())
    data = [toy.images, toy.labels, toy.order, toy.rates, toy.shares, toy.within]
    assert not unnamed(recording.used, [*toy.state().values(), *data])
    assert recording.generators == [("aten.bernoulli_.float", None)]
    launches = recording.launches
    assert not {"aten.detach.default", "aten.t.default", "aten.view.default", "aten.empty_like.default"} & {*launches}
    for operator in ("convpool.conv_relu_max_pool2d", "convpool.conv_relu_max_pool2d_backward", "aten._fused_adam_"):
        assert sum(name.rsplit(".", 1)[0] == operator for name in launches) == 1, operator


def test_recording_changes_nothing() -> None:
    """As a capture, which computes nothing."""
    toy, twin = Toy(), Toy()
    recorded(toy)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    for _ in range(WARM):
        twin.step()
    assert torch.equal(drawn, torch.rand(3))
    for name, tensor in twin.state().items():
        assert torch.equal(tensor, toy.state()[name])


class RateOfPython(Toy):
    def choose_rate(self) -> None:
        self.rate.fill_(self.rates[self.calls].item())


class SlicedBatch(Toy):
    def images_of_step(self) -> Tensor:
        return self.order[self.calls * BATCH : (self.calls + 1) * BATCH]


class AverageCountedInPython(Toy):
    def move_averages(self) -> None:
        for average, parameter in zip(self.averages, self.model.parameters(), strict=True):
            average.lerp_(parameter.detach(), 1 / (1 + self.calls))


class StepCountedInPython(Toy):
    def keep(self, loss: Tensor) -> None:
        self.losses[self.calls] = loss


class DropoutOfPython(Toy):
    def loss(self, index: Tensor) -> Tensor:
        return super().loss(index) * random.Random(self.calls).random()


class LossOfTheStepBefore(Toy):
    """A graph would read memory that others got meanwhile."""

    before: Tensor | float = 0.0

    def keep(self, loss: Tensor) -> None:
        super().keep(loss + self.before)
        self.before = loss


class StateMadeInTheStep(Toy):
    """The optimiser forgets, and makes its state anew, which each replay then does."""

    def choose_rate(self) -> None:
        super().choose_rate()
        if self.calls == WARM:
            self.optimizer.state.clear()


FAULTS = [RateOfPython, SlicedBatch, AverageCountedInPython, StepCountedInPython, DropoutOfPython]
FAULTS += [LossOfTheStepBefore, StateMadeInTheStep]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_replays_cannot_follow_differs(fault) -> None:
    assert not replays_are_calls(fault)


class OwnGenerator(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def images_of_step(self) -> Tensor:
        some = torch.randint(len(self.order), (BATCH,), generator=self.generator)
        return some.maximum(torch.zeros_like(some).random_(0, len(self.order), generator=self.generator))


def test_a_generator_of_ones_own_is_named() -> None:
    toy = OwnGenerator()
    operators, (*own, devices) = zip(*recorded(toy).generators, strict=True)
    assert operators == ("aten.randint.generator", "aten.random_.from", "aten.bernoulli_.float")
    assert [generator.initial_seed() for generator in own] == [5, 5]
    assert devices is None


def test_a_generator_of_ones_own_draws_anew() -> None:
    assert replays_are_calls(OwnGenerator)


class LatestLoss(Toy):
    """Writes a tensor that is not on its list."""

    def __init__(self) -> None:
        super().__init__()
        self.latest = torch.zeros(())

    def keep(self, loss: Tensor) -> None:
        super().keep(loss)
        self.latest.copy_(loss)


def test_what_is_written_and_not_listed_is_found() -> None:
    toy = LatestLoss()
    (found,) = unnamed(recorded(toy).written, toy.state().values())
    assert found.data_ptr() == toy.latest.data_ptr()


def test_running_statistics_are_written() -> None:
    """Their operator's schema does not say so."""
    norm, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    written = record(lambda: norm(x)).written
    assert not unnamed(norm.buffers(), written)
    assert not unnamed(written, norm.buffers())


def test_a_write_that_changes_nothing_is_one() -> None:
    x = torch.zeros(2)
    recording = record(x.zero_)
    x += 1
    recording.replay()
    assert not x.any()
    assert not unnamed([x], recording.written)


@pytest.mark.parametrize(
    ("look", "operator"),
    [
        (lambda x: x.sum().item(), "aten._local_scalar_dense.default"),
        (lambda x: bool(x.any()), "aten._local_scalar_dense.default"),
        (lambda x: torch.equal(x, x), "aten.equal.default"),
        (lambda x: x.nonzero(), "aten.nonzero.default"),
        (lambda x: x.unique(), "aten._unique2.default"),
        (lambda x: x[x > 1], "aten.index.Tensor"),
        (lambda x: torch.tensor(3.0) * x, "aten.lift_fresh.default"),
    ],
)
def test_what_makes_the_host_wait_is_listed(look: Callable[[Tensor], object], operator: str) -> None:
    x = torch.arange(4.0)
    assert record(lambda: look(x)).host_reads == [operator]


def test_an_index_by_numbers_makes_nobody_wait() -> None:
    x = torch.arange(4.0)
    assert not record(lambda: x[torch.arange(2)]).host_reads


@pytest.mark.parametrize(
    ("dtype", "spoilt"), [(torch.float32, torch.nan), (torch.int64, 2**63 - 1), (torch.uint8, 255)]
)
def test_memory_that_nothing_wrote_is_spoilt(dtype, spoilt) -> None:
    kept = torch.zeros(2, dtype=dtype)

    def step() -> None:
        room = torch.empty(2, dtype=dtype)
        kept.copy_(room)
        room.fill_(1)

    recording = record(step)
    recording.replay()
    torch.testing.assert_close(kept, torch.full((2,), spoilt, dtype=dtype), rtol=0, atol=0, equal_nan=True)


def test_results_are_worth_nothing_before_the_first_replay() -> None:
    x, results = torch.ones(2), []
    recording = record(lambda: results.extend([x + 1, x > 0]))
    assert results[0].isnan().all()
    assert not results[1].any()
    recording.replay()
    assert (results[0] == 2).all()
    assert results[1].all()
