"""The loop: it learns, counts every image once, continues bit for bit, and stops when the loss is no number."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import chain, pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData, epoch_order
from mnistfast.data.sources import load
from mnistfast.data.statistics import channel_stats
from mnistfast.errors import DivergedError
from mnistfast.models.zoo import build
from mnistfast.options.learning import TrainConfig
from mnistfast.training import epoch as epoch_module
from mnistfast.training import trainer as trainer_module
from mnistfast.training.epoch import Replay
from mnistfast.training.inference import predict
from mnistfast.training.plan import Plan
from mnistfast.training.schedules import learning_rate
from mnistfast.training.trainer import Trainer

CPU = torch.device("cpu")
CONFIG = TrainConfig(model="lenet5", batch_size=48, dropout=0.3, label_smoothing=0.1, lr=5e-3, seed=3)


@pytest.fixture(scope="module")
def splits(tiny):
    """170 images to train on, 30 to validate with, on the CPU."""
    split = load(str(tiny)).train
    mean, std = channel_stats(split.images)
    order = epoch_order(200, 0, 0).numpy()
    train, val = (Split(split.images[part], split.labels[part]) for part in (order[:170], order[170:]))
    return DeviceData(train, CPU, mean, std), DeviceData(val, CPU, mean, std)


def new_trainer(splits, config=CONFIG, epochs=3, validate=True):
    torch.manual_seed(config.seed)
    model = build(config.model, dropout=config.dropout)
    train, val = splits
    return Trainer(model, train, val if validate else None, replace(config, epochs=epochs))


def test_learns(splits):
    records = [record for record in new_trainer(splits, epochs=8).run() if record]
    assert [record["epoch"] for record in records] == list(range(1, 9))
    assert records[-1]["accuracy"] > 0.6 > records[0]["accuracy"]
    assert records[-1]["loss"] < records[0]["loss"]


def test_first_epoch_against_a_plain_loop(splits):
    """Every image counts once, in the order of the epoch, the smaller last batch by its size."""
    trainer = new_trainer(splits, replace(CONFIG, dropout=0.0))
    record = next(record for record in trainer.run() if record)
    torch.manual_seed(CONFIG.seed)
    model = build("lenet5")
    optimizer = torch.optim.Adam(model.parameters())
    loss_sum = hits = 0.0
    for step, index in enumerate(epoch_order(170, CONFIG.seed, 0).split(48)):
        images, labels = splits[0].gather(index)
        optimizer.param_groups[0]["lr"] = learning_rate("onecycle", step, 12, CONFIG.lr)
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        hits += (logits.argmax(1) == labels).sum().item()
    assert record["step"] == step + 1 == 4
    assert record["loss"] == pytest.approx(loss_sum / 170, rel=1e-4)
    assert record["accuracy"] == pytest.approx(hits / 170, abs=2 / 170)  # rounding may tip an image or two
    logits, labels = predict(trainer.model, splits[1])
    assert record["val_loss"] == pytest.approx(F.cross_entropy(logits.double(), labels).item())
    assert record["val_accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())


@pytest.mark.parametrize(
    ("images", "options", "sizes"),
    [
        (170, {"batch_size": 48}, [48, 48, 48, 26]),
        (48, {"batch_size": 48}, [48]),
        # 100 / 24 steps, of which 60 % grow
        (100, {"batch_size": 30, "first_batch": 10}, [10, 18, 26, 30, 16]),
        (170, {"batch_size": 30, "first_batch": 10, "max_steps": 5}, [10, 17, 23, 30, 30, 30, 30]),
    ],
)
def test_batches_of_an_epoch(images, options, sizes):
    plan = Plan(1, images, TrainConfig(**options))
    bounds = plan.bounds
    assert [after - before for before, after in pairwise(bounds)] == sizes
    assert plan.steps_per_epoch == len(sizes)


def test_growing_batches_take_every_image_once(splits, monkeypatch):
    seen = []
    take = DeviceData.take

    def taking(self, order, cursor, rates, rows):
        taken = take(self, order, cursor, rates, rows)
        seen.append(order[cursor.positions(rows)].tolist())
        return taken

    monkeypatch.setattr(DeviceData, "take", taking)
    trainer = new_trainer(splits, replace(CONFIG, first_batch=10), epochs=1, validate=False)
    (record,) = (record for record in trainer.run() if record)
    assert [len(batch) for batch in seen] == list(torch.tensor(trainer.plan.bounds).diff())
    assert sorted(chain.from_iterable(seen)) == list(range(170))
    assert trainer.images_seen == 170
    sizes = [len(batch) for batch in seen]
    losses = torch.cat([part * size for part, size in zip(trainer.tally.losses.split(sizes), sizes, strict=True)])
    assert record["loss"] == pytest.approx(losses.mean().item())


@pytest.mark.parametrize(
    ("model", "optimizer", "start"),
    [
        ("lenet5", "adam", "random"),
        ("lenet5", "adamw", "random"),
        ("lenet5", "sgd", "random"),
        ("lenet5", "muon", "patches"),
        pytest.param("cnn2-bn", "adam", "random", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_continues_bit_for_bit(splits, model, optimizer, start, stop_after):
    config = replace(CONFIG, model=model, optimizer=optimizer, start=start, weight_decay=0.01)
    config = replace(config, first_batch=40 if start == "patches" else None)
    whole = new_trainer(splits, config)
    expected = [record for record in whole.run() if record]
    first = new_trainer(splits, config)
    steps = first.run()
    found = [record for record, _ in zip(steps, range(stop_after), strict=False) if record]
    state = first.state_dict()
    torch.manual_seed(99)
    second = new_trainer(splits, replace(config, seed=config.seed))
    torch.rand(5)  # whatever was drawn in between must not matter
    second.load_state_dict(state)
    found += [record for record in second.run() if record]
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weight), name
        assert torch.equal(second.best_weights[name], whole.best_weights[name])
    timeless = [{k: v for k, v in record.items() if k not in ("seconds", "images_per_s")} for record in found]
    assert timeless == [{k: v for k, v in record.items() if k in timeless[0]} for record in expected]
    assert second.best == whole.best


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_continues_on_weights_that_lie_otherwise(splits, optimizer):
    """As a GPU's would beside a CPU's: what a step does depends on the numbers, not on their places."""
    config = replace(CONFIG, optimizer=optimizer, dropout=0.0)
    whole, other = new_trainer(splits, config), new_trainer(splits, config)
    other.model.to(memory_format=torch.channels_last)
    steps = whole.run()
    for _ in range(4):
        next(steps)
    other.load_state_dict(deepcopy(whole.state_dict()))
    next(steps)
    next(other.run())
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], weight)


def test_a_first_layer_from_patches_is_not_learnt(splits):
    trainer = new_trainer(splits, replace(CONFIG, start="patches"))
    first, second = trainer.model.features
    before = first.weight.clone(), second.weight.clone()
    steps = trainer.run()
    for _ in range(2):  # the last layer begins at zero, so the first step reaches nothing before it
        next(steps)
    assert torch.equal(first.weight, before[0])
    assert not torch.equal(second.weight, before[1])


def test_fresh_shuffle_each_epoch(splits, monkeypatch):
    orders = []
    monkeypatch.setattr(
        epoch_module, "epoch_order", lambda *args: orders.append(epoch_order(*args).tolist()) or epoch_order(*args)
    )
    list(new_trainer(splits).run())
    assert len(orders) == 3
    assert orders[0] != orders[1] != orders[2]
    assert all(sorted(order) == list(range(170)) for order in orders)


def script(monkeypatch, results):
    """Makes validation find, epoch by epoch, so many hits in its 30 images, all answers as sure as `sharpness`."""
    script = iter(results)

    def predicting(model, data):
        hits, sharpness = next(script)
        labels = data.gather(torch.arange(len(data)))[1]
        answers = torch.where(torch.arange(len(data)) < hits, labels, (labels + 1) % 10)
        return F.one_hot(answers, 10) * sharpness, labels

    monkeypatch.setattr(trainer_module, "predict", predicting)


def test_best_is_by_accuracy_then_loss(splits, monkeypatch):
    # of two epochs with 20 hits, more is lost by the surer one: its ten errors weigh more
    script(monkeypatch, [(18, 1.0), (20, 6.0), (20, 1.0), (19, 1.0)])
    trainer = new_trainer(splits, epochs=4)
    list(trainer.run())
    assert trainer.best["epoch"] == 3
    assert trainer.last_record["epoch"] == 4
    assert any(
        not torch.equal(weight, trainer.best_weights[name]) for name, weight in trainer.model.state_dict().items()
    )


def test_patience(splits, monkeypatch):
    script(monkeypatch, [(18, 1.0), (20, 1.0), (19, 1.0), (20, 1.0), (25, 1.0)])
    trainer = new_trainer(splits, replace(CONFIG, patience=2), epochs=5)
    records = [record for record in trainer.run() if record]
    assert len(records) == 4
    assert trainer.finished
    assert trainer.best["epoch"] == 2


def test_without_validation_the_last_is_the_best(splits):
    trainer = new_trainer(splits, replace(CONFIG, val=0), validate=False)
    records = [record for record in trainer.run() if record]
    assert "val_loss" not in records[0]
    assert trainer.best["epoch"] == 3


@pytest.mark.parametrize("check_every", [1, 2, 32])
def test_loss_that_is_no_number(splits, monkeypatch, check_every):
    monkeypatch.setattr(trainer_module, "CHECK_EVERY", check_every)
    trainer = new_trainer(splits)
    steps = trainer.run()
    for _ in range(5):
        next(steps)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("inf"))
    with pytest.raises(
        DivergedError, match=r"the loss became nan at step 6 \(learning rate .*Last good state: none yet"
    ):
        list(steps)
    # Looked at every so often, at the epoch's end at the latest.
    assert trainer.step == {1: 6, 2: 6, 32: 8}[check_every]


def test_weights_that_are_no_numbers_are_not_saved(splits):
    trainer = new_trainer(splits)
    next(trainer.run())
    with torch.no_grad():
        next(trainer.model.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(DivergedError, match="a weight is not a finite number after step 1"):
        trainer.state_dict()


class OnTheCpu(TorchDispatchMode):
    """The names of the operators that take or make a tensor on the CPU."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        in_place = func.__name__ == "_fused_adamw_.tensor_lr"  # which torch lacks for "meta"
        result = None if in_place else func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.names.append(func.__name__)
        return result


@pytest.mark.parametrize(
    "model", ["lenet5", *(pytest.param(n, marks=pytest.mark.slow) for n in ("accurate", "cnn2-bn"))]
)
def test_steps_neither_ask_the_device_nor_send_it_anything(tiny, monkeypatch, model):
    """On "meta", whose tensors have no value to be asked for, with everything on that a step may have."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which there is none of on "meta"
    meta = torch.device("meta")
    data = DeviceData(load(str(tiny)).train, meta, [0.1], [0.3])
    config = replace(CONFIG, optimizer="muon", epochs=1, batch_size=8, augment="mild", ema=0.9, clip=1.0)
    net = build(model, dropout=0.3, old_classes=[10]).to(meta)
    steps = Trainer(net, data, None, config, replay=Replay(data, 1)).run()
    with OnTheCpu():
        next(steps)  # begins the epoch
    with OnTheCpu() as found:
        for _ in range(20):
            next(steps)
    assert found.names == []
