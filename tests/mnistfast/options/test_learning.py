"""What a training is told: presets and rules."""

from dataclasses import fields, replace

import pytest
import torch

from mnistfast import train
from mnistfast.errors import UsageError
from mnistfast.models.zoo import MODELS
from mnistfast.options.fields import spec_of
from mnistfast.options.learning import LEAST_IMAGES, MOST_EPOCHS, TrainConfig
from mnistfast.options.presets import ON_GPU, PRESETS
from mnistfast.training.plan import Plan


def test_every_model_has_a_preset():
    assert set(PRESETS) == set(MODELS)


def test_a_preset_sets_what_it_may():
    may = {option.name for option in fields(TrainConfig) if spec_of(option).preset}
    for preset in (*PRESETS.values(), *ON_GPU.values()):
        assert preset.keys() <= may | {"epochs"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("model", PRESETS)
def test_preset_fills_what_is_not_given(model, device):
    config = TrainConfig(model=model, lr=0.125, device=device)
    preset = dict(PRESETS[model]) | (dict(ON_GPU.get(model, {})) if device == "cuda" else {})
    for option in fields(TrainConfig):
        if spec_of(option).preset and option.name != "lr":
            assert getattr(config, option.name) == preset.get(option.name, spec_of(option).default)
    assert config.lr == 0.125


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("model", PRESETS)
def test_a_presets_values_are_allowed(model, device):
    config = TrainConfig(model=model, device=device)
    assert replace(config) == config  # which takes them as given: they are checked


@pytest.mark.parametrize("model", PRESETS)
def test_python_trains_as_the_command(model, tmp_path, capsys):
    assert train.main(["--model", model, "--device", "cpu", "--print-config"]) == 0
    assert capsys.readouterr().out == TrainConfig(model=model, device="cpu").to_yaml()


def test_nothing_can_be_meant():
    """None is a value like others: no growing batches, no limit of steps, and the preset does not put them back."""
    config = TrainConfig(model="speedrun", device="cpu", first_batch=None, max_steps=None)
    assert (config.batch_size, config.first_batch, config.max_steps) == (384, None, None)


@pytest.mark.parametrize(
    ("given", "batches"),
    [
        ({"device": "cpu"}, (384, 96, 134)),
        ({"device": "cuda"}, (256, None, 156)),
        ({"device": "cuda:1", "epochs": 1}, (256, None, None)),
        ({"device": "mps"}, (256, None, 156)),
        ({"device": "cuda", "batch_size": 384, "first_batch": 96, "max_steps": 134}, (384, 96, 134)),
        ({"device": "cuda", "max_steps": 100}, (256, None, 100)),
    ],
)
def test_batches_do_not_grow_on_a_gpu_unless_told(given, batches):
    config = TrainConfig(model="speedrun", **given)
    assert (config.batch_size, config.first_batch, config.max_steps) == batches
    assert config.lr == PRESETS["speedrun"]["lr"]


@pytest.mark.parametrize(("there", "first"), [(False, 96), (True, None)])
def test_a_device_not_named_is_the_one_that_is_there(monkeypatch, there, first):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert TrainConfig(model="speedrun").first_batch == first


def test_shapes_of_a_gpus_training_are_one():
    plan = Plan(1, 50_000, TrainConfig(model="speedrun", device="cuda"))
    assert {plan.images_of(step) for step in range(plan.steps)} == {256}


def test_epochs_grow_for_a_small_set():
    config = TrainConfig()
    assert config.planned_epochs(54_000) == 1
    assert config.planned_epochs(3_600) == 12
    assert LEAST_IMAGES <= 12 * 3_600
    assert config.planned_epochs(10) == MOST_EPOCHS
    assert TrainConfig(model="lenet5").planned_epochs(54_000) == 5
    assert TrainConfig(epochs=3).planned_epochs(10) == 3


def test_epochs_asked_for_are_not_cut_short_by_a_preset():
    assert TrainConfig(model="speedrun", device="cpu").max_steps == PRESETS["speedrun"]["max_steps"]
    assert TrainConfig(model="speedrun", epochs=2).max_steps is None
    assert TrainConfig(model="speedrun", epochs=2, max_steps=7).max_steps == 7


@pytest.mark.parametrize(("val", "count"), [(0, 0), (0.1, 400), (0.0005, 2), (1, 1), (500, 500), (3999, 3999)])
def test_val_is_a_share_or_a_count(val, count):
    assert TrainConfig(val=val).val_count(4000) == count


def test_val_that_comes_to_nothing():
    with pytest.raises(UsageError, match=r"--val 0.0001 holds out none of 4,000 images"):
        TrainConfig(val=0.0001).val_count(4000)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0}, {"first_batch": 0}, {"threads": 0}, {"patience": -1}, {"weight_decay": -0.1},
        {"dropout": 1.0}, {"momentum": 1.0}, {"label_smoothing": -0.1}, {"betas": (0.9, 1.0)},
        {"lr": 0.0}, {"lr": float("inf")}, {"seed": -1}, {"val": 1.5},
        {"val": float("inf")}, {"val": float("nan")}, {"optimizer": "adamax"}, {"schedule": "exponential"},
        {"precision": "fp16"},
    ],
)  # fmt: skip
def test_impossible_values(options):
    (name,) = options
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        TrainConfig(**options)
