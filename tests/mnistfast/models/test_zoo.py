"""The named models: their sizes, their layers, what they refuse."""

import pytest
import torch
from torch import nn

from convpool import ConvBNReLUMaxPool2d
from mnistfast.errors import CheckpointError, DataError
from mnistfast.models.zoo import COLOUR, FUSED_LAYERS, GREY, MODELS, build, check_images

COUNTS = {
    "cnn1": 693_962,
    "cnn2": 225_034,
    "cnn2-bn": 225_130,
    "lenet5": 61_706,
    "cifar-cnn": 122_570,
    "fast": 215_194,
    "accurate": 142_090,
    "speedrun": 19_946,
}


def test_every_model_has_a_count():
    assert set(COUNTS) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_shapes(name):
    model = build(name)
    assert sum(weight.numel() for weight in model.parameters()) == COUNTS[name]
    assert model.input_size == (COLOUR if name == "cifar-cnn" else GREY)
    assert model(torch.rand(3, *model.input_size)).shape == (3, 10)


@pytest.mark.parametrize("name", MODELS)
def test_each_conv_with_a_pool_is_one_fused_layer(name):
    layers = list(build(name).modules())
    held = {part for layer in layers if isinstance(layer, ConvBNReLUMaxPool2d) for part in layer.children()}
    alone = [layer for layer in layers if layer not in held and not isinstance(layer, FUSED_LAYERS)]
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in alone)
    assert sum(isinstance(layer, nn.Conv2d) for layer in alone) == (name in ("cifar-cnn", "accurate"))


def test_the_last_fused_layer_writes_what_flattens_without_a_copy():
    """Whatever format the model computes in."""
    for name in ("cnn2", "cnn2-bn"):
        model = build(name).to(memory_format=torch.channels_last)
        images = torch.rand(2, 1, 28, 28).contiguous(memory_format=torch.channels_last)
        assert model.features(images).is_contiguous(), name


@pytest.mark.parametrize("name", MODELS)
def test_equals_torchs_own_layers(name):
    model = build(name).double().eval()
    images = torch.rand(2, *model.input_size, dtype=torch.float64)
    fused = model(images)
    for layer in model.modules():
        if isinstance(layer, FUSED_LAYERS):
            layer.plain = True
    torch.testing.assert_close(model(images), fused)


def test_arguments_build_the_model_again():
    model = build("cnn2", classes=26, dropout=0.5)
    again = build(model.name, **model.arguments)
    again.load_state_dict(model.state_dict())
    assert again.classes == 26
    assert sum(isinstance(layer, nn.Dropout) for layer in again.modules()) == 1


def test_heads_of_earlier_tasks():
    model = build("cnn1", classes=5)
    images = torch.rand(2, 1, 28, 28)
    first = model(images)
    model.add_head(3)
    second = model(images)
    model.add_head(7)
    assert [model(images, head).shape[1] for head in range(3)] == [7, 3, 5]
    assert torch.equal(model(images, 1), second)
    assert torch.equal(model(images, 2), first)
    again = build(model.name, **model.arguments)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images, 2), first)
    again.use_head(2)
    assert (again.classes, again.arguments) == (5, {"classes": 5, "dropout": 0.0})
    assert torch.equal(again(images), first)
    assert not again.old_heads


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_embeddings_stand_for_images(dropout):
    model = build("lenet5", dropout=dropout).eval()
    images = torch.rand(3, 1, 28, 28)
    assert model.embed(images).shape == (3, 84)
    assert torch.equal(model(model.embed(images)), model(images))


def test_dropout_is_for_training():
    model = build("lenet5", dropout=0.5)
    images = torch.rand(2, 1, 28, 28)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_unknown_name():
    with pytest.raises(CheckpointError, match=r"unknown model 'lenet' \(did you mean 'lenet5'\?\)"):
        build("lenet")


def test_images_of_another_size():
    model = build("lenet5")
    check_images(model, (1, 28, 28), "set")
    with pytest.raises(
        DataError,
        match=r"images of set are 32x32x3, model lenet5 takes 28x28x1. FIX: --resize 28 --gray or --model cifar-cnn",
    ):
        check_images(model, (3, 32, 32), "set")
    with pytest.raises(DataError, match=r"FIX: --resize 28$"):
        check_images(model, (1, 5, 5), "set")
    with pytest.raises(DataError, match=r"FIX: --gray$"):
        check_images(model, (3, 28, 28), "set")
    with pytest.raises(DataError, match="FIX: a data set in colour or --model cnn1 or cnn2 or"):
        check_images(build("cifar-cnn"), (1, 28, 28), "set")
