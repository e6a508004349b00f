"""Steps are called, or recorded once for each size of batch and replayed; recording a step changes nothing."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mnistfast import devices, train
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.errors import DeviceError
from mnistfast.models.adapters import choose
from mnistfast.models.zoo import build
from mnistfast.options.learning import TrainConfig
from mnistfast.training import launching
from mnistfast.training.launching import LEAST, Launcher, make_launcher
from mnistfast.training.ranks import Ranks
from mnistfast.training.trainer import Trainer

CONFIG = TrainConfig(model="lenet5", batch_size=16, dropout=0.3, epochs=4)  # two steps an epoch, and one of 8 images


@dataclass
class Stood:
    """Stands for a graph: replays by calling."""

    step: Any
    replays: int = 0

    def replay(self):
        self.replays += 1
        self.step()


@pytest.fixture
def data(tiny):
    """40 images on the CPU."""
    split = load(str(tiny)).train
    return DeviceData(Split(split.images[:40], split.labels[:40]), torch.device("cpu"), [0.1], [0.3])


def trainer_of(data, record=None, config=CONFIG, **options):
    torch.manual_seed(0)
    model = build("lenet5", dropout=config.dropout)
    if "method" in options:
        options["tuning"] = choose(model, options.pop("method"), unfreeze_at=options.pop("unfreeze_at", ()))
    trainer = Trainer(model, data, None, config, **options)
    sizes = Counter(trainer.plan.images_of(step) for step in range(trainer.plan.steps))
    trainer.launcher = Launcher(trainer.learner, sizes, record)
    return trainer


def run(trainer):
    torch.manual_seed(1)  # of what dropout draws
    for _ in trainer.run():
        pass


def test_one_recording_for_each_size_that_is_worth_it(data):
    made = []
    config = replace(CONFIG, epochs=LEAST)
    trainer = trainer_of(data, lambda step: made.append(Stood(step)) or made[-1], replace(config, epochs=LEAST - 1))
    run(trainer)
    assert [each.replays for each in made] == [2 * (LEAST - 1)]
    assert trainer.launcher.words.startswith("replayed, in batches of 16; warming up and recording took ")
    made.clear()
    run(trainer_of(data, lambda step: made.append(Stood(step)) or made[-1], config))
    assert [each.replays for each in made] == [2 * LEAST, LEAST]


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_recording_changes_nothing(data, optimizer):
    """Weights, the optimiser's state, the average, losses, the cursor, what dropout draws next."""
    config = replace(CONFIG, optimizer=optimizer, ema=0.9, clip=1.0, augment="mild")
    called, replayed = trainer_of(data, None, config), trainer_of(data, Stood, config)
    run(called)
    run(replayed)
    assert replayed.launcher.sizes == (16,)
    for one, other in zip(called.learner.state(), replayed.learner.state(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(called.state_dict()["rng"], replayed.state_dict()["rng"])
    assert called.last_record["loss"] == replayed.last_record["loss"]


def test_recorded_anew_where_more_learns(data):
    made = []
    config = replace(CONFIG, epochs=5)
    trainer = trainer_of(
        data, lambda step: made.append(Stood(step)) or made[-1], config, method="full", unfreeze_at=(2,)
    )
    run(trainer)
    assert [each.replays for each in made] == [2, 8]  # from the second epoch on all layers learn


def test_what_cannot_be_recorded_is_called(data):
    def refusing(step):
        step()
        raise RuntimeError("operation not permitted when stream is capturing\nmore words")

    called, refused = trainer_of(data), trainer_of(data, refusing)
    run(called)
    run(refused)
    words = "called one by one: it cannot be recorded: operation not permitted when stream is capturing"
    assert refused.launcher.words == words
    for one, other in zip(called.learner.state(), refused.learner.state(), strict=True):
        assert torch.equal(one, other)


def test_a_recording_is_made_before_the_first_step_if_asked(data):
    trainer = trainer_of(data, Stood)
    before = [tensor.clone() for tensor in trainer.learner.model.parameters()]
    trainer.prepare()
    assert trainer.launcher.sizes == (16,)
    assert all(map(torch.equal, before, trainer.learner.model.parameters()))
    launcher = trainer.launcher
    run(trainer)
    assert trainer.launcher is launcher


def test_a_cpu_calls(data, capsys):
    launcher = trainer_of(data).launcher
    assert (launcher.sizes, launcher.words) == ((), "called one by one")
    for graph in ("auto", "off"):
        assert not Trainer(build("lenet5"), data, None, replace(CONFIG, graph=graph)).launcher.sizes
    with pytest.raises(DeviceError, match="--graph on needs a GPU"):
        Trainer(build("lenet5"), data, None, replace(CONFIG, graph="on"))
    assert train.main(["--data", "sample", "--device", "cpu", "--graph", "on"]) == 6
    assert "--graph on needs a GPU" in capsys.readouterr().err


def test_what_a_graph_cannot_hold(data, monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(devices, "can_replay", lambda device: True)
    learner = trainer_of(data).learner

    def obstacle(config=CONFIG, ranks=Ranks()):  # noqa: B008  # frozen
        return make_launcher(config, learner, Counter(), ranks).words

    assert obstacle(replace(CONFIG, compile=True)) == "called one by one: --compile launches in its own way"
    assert "several processes" in obstacle(ranks=Ranks(0, 2))
    assert obstacle(replace(CONFIG, graph="off", compile=True)) == "called one by one"
    handle = learner.model.features[1].register_forward_hook(lambda *_: None)
    assert obstacle() == "called one by one: features.1 has a hook, which is Python"
    handle.remove()


class StoodCuda:
    """Stands for torch.cuda: notes who waits for whom, and what is done where."""

    def __init__(self, monkeypatch):
        self.did = []
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.stream("beside"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.stream("present"))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: self.within(f"on {stream.name}"))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Stood(lambda: self.did.append("replay")))
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool: self.within(f"recording with {pool}"))

    def stream(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: self.did.append(f"{name} waits for {other.name}"))

    @contextmanager
    def within(self, what):
        self.did.append(what)
        yield
        self.did.append(f"no longer {what}")


def test_a_graph_is_recorded_as_cuda_asks_for(monkeypatch):
    cuda = StoodCuda(monkeypatch)
    with launching._beside(torch.device("cuda")):
        cuda.did.append("warm up")
    assert cuda.did == [
        "beside waits for present", "on beside", "warm up", "no longer on beside", "present waits for beside"
    ]  # fmt: skip
    cuda.did.clear()
    graphs = launching.CudaGraphs()
    graphs.record(lambda: cuda.did.append("step")).replay()
    assert cuda.did == ["recording with pool", "step", "no longer recording with pool", "replay"]
