"""By which plans a training computes: the rule's, or measured ones, which leave no other trace in it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from convpool import choices
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.models import adapters
from mnistfast.models.zoo import build
from mnistfast.options.learning import TrainConfig
from mnistfast.training import trainer as trainer_module
from mnistfast.training.chosen import BY_RULE, MOST, seconds_to_measure
from mnistfast.training.launching import Launcher
from mnistfast.training.trainer import Trainer
from tests.mnistfast.training.measuring import choosing

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIG = TrainConfig(model="lenet5", device="cpu", batch_size=16, dropout=0.3, epochs=2)


@pytest.fixture
def data(tiny):
    """40 images on the CPU."""
    split = load(str(tiny)).train
    return DeviceData(Split(split.images[:40], split.labels[:40]), CPU, [0.1], [0.3])


def trainer_of(data, config=CONFIG, **options):
    torch.manual_seed(0)
    model = build(config.model, dropout=config.dropout)
    if "unfreeze_at" in options:
        options["tuning"] = adapters.choose(model, "full", unfreeze_at=options.pop("unfreeze_at"))
    return Trainer(model, data, None, config, **options)


def run(trainer):
    torch.manual_seed(1)  # of what dropout draws
    with trainer.chosen.in_force():
        for _ in trainer.run():
            pass


@pytest.mark.parametrize(
    ("tune", "device", "steps", "replayed", "seconds"),
    [
        ("on", CPU, 1, False, MOST),
        ("on", CUDA, 1, True, MOST),
        ("off", CUDA, 10**6, False, 0),
        ("auto", CPU, 10**6, False, 0),
        ("auto", CUDA, 422, True, 0),
        ("auto", CUDA, 11_000, False, 0),
        ("auto", CUDA, 12_000, False, 1.08),
        ("auto", CUDA, 12_000, True, 0),
        ("auto", CUDA, 200_000, True, 1.2),
        ("auto", CUDA, 10**6, False, MOST),
    ],
)
def test_how_long_is_measured(tune, device, steps, replayed, seconds):
    found = seconds_to_measure(TrainConfig(tune=tune), device, steps, replayed=replayed)
    assert found == pytest.approx(seconds)
    if tune != "on":
        repeatable = TrainConfig(tune=tune, deterministic=True)
        assert seconds_to_measure(repeatable, device, steps, replayed=replayed) == 0


def test_measuring_leaves_nothing_but_plans(data):
    """By `convpool.tune` itself: weights, statistics of norms, generators, the order, and the steps that come."""
    config = replace(CONFIG, model="accurate", augment="mild", ema=0.9)
    plain, measured = trainer_of(data, config), trainer_of(data, config)
    torch.manual_seed(1)
    before = measured.state_dict()
    measured.choose(0.2)
    assert "measured in" in measured.chosen.words
    assert_same(before, measured.state_dict())
    measured.chosen = BY_RULE
    run(plain)
    run(measured)
    assert_same(plain.state_dict(), measured.state_dict())


def assert_same(one, other):
    leaves = (tree_leaves({**state, "seconds": 0, "chosen": None}) for state in (one, other))
    for mine, theirs in zip(*leaves, strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs


def test_a_run_follows_its_plans_alone(data, measure):
    by_rule, chosen, again = (trainer_of(data) for _ in range(3))
    run(by_rule)
    chosen.choose(5.0)
    assert chosen.chosen.words == "2 of 2 calls measured in 1.5 s"
    run(chosen)
    assert not torch.equal(by_rule.model.features[0].weight, chosen.model.features[0].weight)
    with choices.use(chosen.chosen.choices):  # as if it were the user's table
        run(again)
    assert torch.equal(by_rule.model.features[0].weight, again.model.features[0].weight)


def test_what_the_table_knows_is_not_measured(data, measure):
    first, second, third = (trainer_of(data) for _ in range(3))
    first.choose(5.0)
    table = first.chosen.choices
    with choices.use(table):
        second.choose(5.0)
    assert second.chosen.choices == table
    assert second.chosen.words == "nothing measured, the table has all 2 calls"
    assert len(measure.asked) == 1
    one = next(iter(table.by_call))
    with choices.use(choosing("cpu/split", [one, "a call of another model"])):
        third.choose(5.0)
    assert third.chosen.choices == table
    assert len(measure.asked) == 2


@pytest.fixture
def colour():
    """40 images in three colours, whose batches are channels_last, as on a GPU."""
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), np.uint8)
    data = DeviceData(Split(images, np.arange(40) % 10), CPU, [0.1] * 3, [0.3] * 3)
    data._memory_format = torch.channels_last
    return data


@pytest.mark.parametrize("model", ["lenet5", "cifar-cnn"])
@pytest.mark.parametrize("words", [{}, {"augment": "mild"}, {"batch_size": 8, "first_batch": 2}], ids=str)
def test_measured_as_most_steps_are(data, colour, measure, model, words):
    trainer = trainer_of(data if model == "lenet5" else colour, replace(CONFIG, model=model, **words))
    seen, network = [], trainer.learner.network
    noting = replace(trainer.learner, network=lambda images, head: seen.append(images) or network(images, head))
    trainer.learner = trainer.launcher.learner = noting
    trainer.choose(5.0)
    assert measure.asked == [{"seconds": 5.0, "replayed": False}]
    (example,) = measure.examples
    run(trainer)
    forms = Counter((images.shape, images.stride(), images.dtype) for images in seen)
    assert forms.most_common(1)[0][0] == (example.shape, example.stride(), example.dtype)


def test_bfloat16_is_not_measured_as_float32(data, measure):
    """Of which a CPU has one plan."""
    trainer = trainer_of(data, replace(CONFIG, precision="bf16"))
    trainer.choose(5.0)
    assert (trainer.chosen.words, measure.asked) == ("nothing measured, no call has two plans", [])


def test_replayed_steps_are_measured_so(data, measure):
    trainer = trainer_of(data)
    trainer.launcher = Launcher(trainer.learner, Counter(), lambda step: None)
    trainer.choose(5.0)
    assert measure.asked[0]["replayed"]


def test_what_learns_at_first_is_measured(data, measure):
    for unfreeze_at, met in (((), ["training", "training dx"]), ((2,), ["inference"] * 2)):
        trainer = trainer_of(data, unfreeze_at=unfreeze_at)
        trainer.choose(5.0)
        calls = trainer.chosen.choices.by_call
        assert [call.removesuffix(" threads=1").endswith(use) for call, use in zip(calls, met, strict=True)] == [
            True
        ] * 2


def test_measuring_is_no_training(data, measure, monkeypatch):
    """By a clock that moves only while something is measured."""
    now = [0.0]
    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: now[0])
    trainer = trainer_of(data)
    measure.during = lambda: now.append(now.pop() + 20.0)
    trainer.choose(5.0)
    assert now == [20.0]
    assert trainer.state_dict()["seconds"] == 0


def test_plans_are_part_of_the_state(data, measure):
    trainer, other = trainer_of(data), trainer_of(data)
    trainer.choose(5.0)
    assert trainer.chosen != BY_RULE
    other.load_state_dict(trainer.state_dict())
    assert other.chosen == trainer.chosen
    state = trainer.state_dict()
    del state["chosen"]  # as older states are
    other.load_state_dict(state)
    assert other.chosen == BY_RULE
