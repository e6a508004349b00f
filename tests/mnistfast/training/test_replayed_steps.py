"""A training whose steps are replayed goes as one whose steps are called, bit for bit, whatever a step has in it.

Recordings of operators stand for the graphs of a GPU.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convpool.gpu.backend import INTERPRETED
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.models.adapters import choose
from mnistfast.models.zoo import build
from mnistfast.ops.placement import standing_for_gpus
from mnistfast.options.learning import TrainConfig
from mnistfast.options.presets import PRESETS
from mnistfast.training.epoch import Replay
from mnistfast.training.inference import embed
from mnistfast.training.launching import LEAST, Launcher
from mnistfast.training.trainer import Trainer
from tests.mnistfast.training.recording import Recording, address_of, record, unnamed

SHORT = {"epochs": 2, "batch_size": 8, "first_batch": None, "val": 0}
IMAGES = 20  # batches of 8, 8 and 4
LENET5 = TrainConfig(model="lenet5", weight_decay=0.01, **SHORT)
EVERYTHING = replace(LENET5, augment="mild", dropout=0.3, ema=0.9, clip=0.5, label_smoothing=0.1)
CONFIGS = {
    **{optimizer: replace(LENET5, optimizer=optimizer) for optimizer in ("adam", "adamw", "sgd", "muon")},
    "everything": EVERYTHING,
    "patches": replace(EVERYTHING, optimizer="muon", start="patches"),
    "bf16": replace(EVERYTHING, precision="bf16"),
    "growing": replace(LENET5, first_batch=4),
}


def noise(size: tuple[int, ...], images: int = IMAGES) -> DeviceData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, *size), dtype=torch.uint8, generator=generator)
    split = Split(pixels.numpy(), (torch.arange(images) % 10).numpy())
    return DeviceData(split, torch.device("cpu"), [0.5] * size[0], [0.3] * size[0])


def new_trainer(config: TrainConfig, images: int = IMAGES) -> Trainer:
    torch.manual_seed(0)
    model = build(config.model, dropout=config.dropout)
    return Trainer(model, noise(model.input_size, images), None, config)


def replaying(trainer: Trainer, batches: Counter[int] | None = None) -> list[Recording]:
    """Lets `trainer` replay its steps, of batches of all sizes unless told, and returns the list of its recordings."""
    sizes = {trainer.plan.images_of(step) for step in range(trainer.plan.steps)}
    recordings: list[Recording] = []

    def keep(step: Callable[[], None]) -> Recording:
        recordings.append(record(step))
        return recordings[-1]

    trainer.launcher = Launcher(trainer.learner, batches or Counter(dict.fromkeys(sizes, LEAST)), keep)
    return recordings


def run(trainer: Trainer) -> list[dict[str, float]]:
    """Trains to the end, and returns what it recorded but for the times."""
    torch.manual_seed(1)
    records = [record for record in trainer.run() if record]
    return [{key: v for key, v in record.items() if key not in ("seconds", "images_per_s")} for record in records]


def saved(trainer: Trainer) -> list[Tensor]:
    """The tensors of its state."""
    state = trainer.state_dict()
    kept = [state[name] for name in ("model", "average", "best_weights", "rng")]
    return [leaf for leaf in tree_leaves([*kept, state["optimizer"]["state"]]) if isinstance(leaf, Tensor)]


def same(ones: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def check(make: Callable[[], Trainer], expected: int = 2) -> None:
    """Two trainings made by `make` are compared, of which one makes so many recordings."""
    called, replayed = make(), make()
    recordings = replaying(replayed)
    assert run(called) == run(replayed)
    assert same(called.learner.state(), replayed.learner.state())
    assert same(saved(called), saved(replayed))
    assert len(recordings) == expected
    assert not replayed.launcher.obstacle
    for recording in recordings:
        assert not recording.host_reads
        assert all(generator is None for _, generator in recording.generators)
        assert not unnamed(recording.written, replayed.learner.state())


@pytest.mark.parametrize("name", CONFIGS)
def test_options(name) -> None:
    config = CONFIGS[name]
    sizes = {new_trainer(config).plan.images_of(step) for step in range(6)}
    check(lambda: new_trainer(config), len(sizes))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset) -> None:
    check(lambda: new_trainer(TrainConfig(model=preset, **SHORT)))


def fine_tuned(model: str, method: str, count: int = 0, *, old: bool = False, **options: object) -> Trainer:
    torch.manual_seed(0)
    classifier = build(model, dropout=0.3, old_classes=[10])
    tuning = choose(classifier, method, count, old_head=int(old), **options)
    data = noise(classifier.input_size)
    if method == "head":
        data = embed(classifier, data)
    config = replace(EVERYTHING, augment="none") if method == "head" else EVERYTHING
    replay = Replay(noise(classifier.input_size, 30), 1) if old else None
    return Trainer(classifier, data, None, config, tuning=tuning, replay=replay)


@pytest.mark.parametrize(
    ("arguments", "options", "recordings"),
    [
        (("lenet5", "full"), {"lr_mult": 0.1, "old": True}, 2),
        (("lenet5", "full"), {"unfreeze_at": (2,), "old": True}, 4),  # a step of more is another step
        (("lenet5", "lora", 2), {}, 2),
        (("lenet5", "head"), {}, 2),
        (("lenet5", "last", 2), {}, 2),
        (("cnn2-bn", "bias"), {}, 2),
    ],
)
def test_fine_tuning(arguments, options, recordings) -> None:
    check(lambda: fine_tuned(*arguments, **options), recordings)


@pytest.fixture
def own_kernels() -> Iterator[None]:
    """Lets a step launch what it launches on a GPU beside the layers, in Triton's interpreter."""
    pytest.importorskip("triton")
    if not INTERPRETED:
        pytest.skip("Triton compiles here")
    with standing_for_gpus("cpu"):
        yield


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # masked: 0 times minus infinity
@pytest.mark.parametrize(
    ("make", "kernels"),
    [
        (lambda: new_trainer(LENET5), ["begin_step", "judge"]),
        (lambda: new_trainer(replace(EVERYTHING, optimizer="muon")), ["begin_step", "judge", "step"]),
        (lambda: fine_tuned("lenet5", "full", old=True), ["begin_step", "judge"] * 2),
    ],
)
def test_kernels_of_a_step(make, kernels, own_kernels) -> None:
    trainer = make()
    recordings = replaying(trainer)
    trainer.prepare()
    launched = [name.removeprefix("triton.") for name in recordings[0].launches if name.startswith("triton.")]
    assert launched == kernels
    check(make)


def test_sizes_that_are_few_are_called_between_replays() -> None:
    images = 8 * 8 + 4
    called, replayed = new_trainer(EVERYTHING, images), new_trainer(EVERYTHING, images)
    recordings = replaying(replayed, Counter({8: 16, 4: 2}))
    assert run(called) == run(replayed)
    assert same(saved(called), saved(replayed))
    assert len(recordings) == 1


@pytest.mark.parametrize("steps", [1, 3, 5])  # in the first epoch, between the two, before the last step of all
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_goes_on_with_what_was_saved(optimizer, steps) -> None:
    """In a new trainer, and in the one that saved it, whose recordings are of another optimiser's tensors by then."""
    whole, first, second = (new_trainer(replace(EVERYTHING, optimizer=optimizer)) for _ in range(3))
    run(whole)
    replaying(first)
    replaying(second)
    torch.manual_seed(1)
    for _, _ in zip(range(steps), first.run(), strict=False):
        pass
    state = deepcopy(first.state_dict())
    for trainer in (first, second):
        trainer.load_state_dict(deepcopy(state))
        assert [record["loss"] for record in trainer.run() if record][-1] == whole.last_record["loss"]
        assert same(saved(whole), saved(trainer))


def test_what_a_replay_uses_is_held() -> None:
    """A graph does not hold the memory that it reads: once nobody does, others get it."""
    trainer = new_trainer(replace(EVERYTHING, optimizer="muon"))
    recordings = replaying(trainer)
    trainer.prepare()
    used = {address_of(tensor) for recording in recordings for tensor in recording.used}
    recordings.clear()
    trainer.launcher.forget()
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    held = {address_of(tensor) for tensor in tensors if tensor.layout is torch.strided}
    assert len(used) > 40
    assert used <= held
