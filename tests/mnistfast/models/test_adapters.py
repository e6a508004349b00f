"""What learns learns, and what does not keeps every bit, a norm's statistics included."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convpool import ConvReLUMaxPool2d
from mnistfast.errors import UsageError
from mnistfast.models.adapters import Tuning, adapter, choose, learning_names, merge, merged, with_adapter
from mnistfast.models.zoo import Classifier, build

# Names of the parameters below the head that each method trains; LeNet-5's body is two convs and two linear layers.
LAYERS = ("features.0", "features.1", "head.0", "head.2")
BODY = {
    "full": {f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")},
    "head": set(),
    "last:1": set(),
    "last:2": {"head.2.weight", "head.2.bias"},
    "last:4": {"head.2.weight", "head.2.bias", "head.0.weight", "head.0.bias", "features.1.weight", "features.1.bias"},
    "bias": {f"{layer}.bias" for layer in LAYERS},
}  # fmt: skip
HEAD = {"head.4.weight", "head.4.bias"}


def learn(model, tuning, epochs=1, steps=2):
    """Takes steps on random images as the trainer does."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(tuning.groups(model), 0.01)
    for epoch in range(epochs):
        tuning.begin_epoch(model, epoch)
        for _ in range(steps):
            images = torch.rand(8, *model.input_size, generator=generator)
            labels = torch.randint(model.classes, (8,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()


def changed(before, after):
    return {name for name, tensor in after.items() if not torch.equal(before[name], tensor)}


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def chosen(model, method, **options):
    kind, _, count = method.partition(":")
    return choose(model, kind, int(count or 0), **options)


@pytest.mark.parametrize("method", BODY)
def test_only_what_is_named_learns(method):
    model = build("lenet5")
    before = copied(model)
    tuning = chosen(model, method)
    learn(model, tuning)
    assert changed(before, model.state_dict()) == BODY[method] | HEAD
    assert tuning.trained == sum(before[name].numel() for name in BODY[method] | HEAD)


def test_everything_learns_by_default():
    model = build("lenet5")
    before = copied(model)
    learn(model, Tuning())
    assert changed(before, model.state_dict()) == set(before)


def normed():
    """A network with a norm behind a convolution of its own; those of cnn2-bn are parts of a fused layer."""
    features = [nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU()]
    return Classifier("normed", (1, 28, 28), features, [6], classes=3, dropout=0.0)


@pytest.mark.parametrize(
    ("make", "norm", "all_layers"),
    [(normed, "features.1", "last:3"), (lambda: build("cnn2-bn", classes=3), "features.0.norm", "last:4")],
    ids=["normed", "cnn2-bn"],
)
@pytest.mark.parametrize("method", ["head", "last:2", "bias", "lora:1", "full", "all layers"])
def test_a_frozen_norm_keeps_its_statistics(make, norm, all_layers, method):
    model = make()
    before = copied(model)
    learn(model, chosen(model, all_layers if method == "all layers" else method))
    statistics = {f"{norm}.running_mean", f"{norm}.running_var", f"{norm}.num_batches_tracked"}
    learnt = changed(before, merged(model.state_dict()))
    assert learnt & statistics == (statistics if method in ("full", "all layers") else set())
    assert (f"{norm}.weight" in learnt) == (method in ("full", "all layers"))


def test_layers_begin_to_learn_one_by_one():
    model = build("lenet5")
    tuning = chosen(model, "full", unfreeze_at=(2, 3))
    seen, before = [], copied(model)
    for epoch in range(3):
        tuning.begin_epoch(model, epoch)
        seen.append({name for name, weight in model.named_parameters() if weight.requires_grad})
    second = {"head.2.weight", "head.2.bias"}
    assert seen == [HEAD, HEAD | second, set(before)]
    learn(model, chosen(model, "full", unfreeze_at=(2, 3)), epochs=2)
    assert changed(before, model.state_dict()) == HEAD | second


def test_the_bodys_rate():
    model = build("lenet5")
    groups = chosen(model, "full", lr_mult=0.1).groups(model)
    assert [(len(group["params"]), group["lr_scale"]) for group in groups] == [(2, 1.0), (8, 0.1)]
    assert len(chosen(model, "head").groups(model)) == 1


def test_an_old_head_learns_when_asked():
    model = build("lenet5")
    model.add_head(3)
    assert {id(p) for p in model.old_heads[0].parameters()} <= {
        id(p) for group in chosen(model, "full", old_head=1).groups(model) for p in group["params"]
    }
    assert chosen(model, "full", old_head=1).trained == chosen(model, "full").trained + 850


def test_lora_trains_through_the_fused_layer():
    """The logits of the tuned model are those of torch's own layers with W + B A: not those of W."""
    torch.manual_seed(0)
    model = build("lenet5").double()
    images = torch.rand(5, 1, 28, 28, dtype=torch.float64)
    before = model(images)
    original = copied(model)
    tuning = chosen(model, "lora:2")
    torch.testing.assert_close(model(images), before, rtol=0, atol=0)  # B begins at zero
    model.float()
    learn(model, tuning)
    model.double()
    assert isinstance(model.features[0], ConvReLUMaxPool2d)
    weights = []
    for name in ("features.0", "features.1", "head.0", "head.2"):
        factors = model.get_submodule(name).parametrizations.weight[0]
        assert factors.up.abs().max() > 1e-3
        weights.append(original[f"{name}.weight"] + (factors.up @ factors.down).view_as(original[f"{name}.weight"]))
        assert torch.equal(model.get_submodule(name).bias, original[f"{name}.bias"].float().double())
    x = F.relu(F.max_pool2d(F.conv2d(images, weights[0], model.features[0].bias, padding=2), 2))
    x = F.relu(F.max_pool2d(F.conv2d(x, weights[1], model.features[1].bias), 2)).flatten(1)
    x = F.relu(F.linear(x, weights[2], model.head[0].bias))
    x = F.relu(F.linear(x, weights[3], model.head[2].bias))
    torch.testing.assert_close(model(images), model.head[4](x), rtol=0, atol=1e-6)
    assert (model(images) - before).abs().max() > 0.01


def test_merged_and_adapter_answer_alike():
    torch.manual_seed(1)
    model, images = build("cnn2"), torch.rand(6, 1, 28, 28)
    original = copied(model)
    tuning = chosen(model, "lora:3")
    learn(model, tuning)
    model.eval()
    logits, state = model(images), model.state_dict()
    learnt = adapter(state, learning_names(model, tuning))
    assert set(learnt) == {"head.2.weight", "head.2.bias"} | {
        f"{layer}.weight.{factor}" for layer in ("features.0", "features.1", "head.0") for factor in ("up", "down")
    }
    assert sum(tensor.numel() for tensor in learnt.values()) == tuning.trained < 0.1 * 225_034
    for weights in (merged(state), with_adapter(original, learnt)):
        plain = build("cnn2").eval()
        plain.load_state_dict(weights)
        torch.testing.assert_close(plain(images), logits, rtol=0, atol=1e-5)
    merge(model)
    assert set(model.state_dict()) == set(original)
    torch.testing.assert_close(model(images), logits, rtol=0, atol=1e-5)
    assert merged(original).keys() == original.keys()


def test_a_rank_above_the_weights_own():
    model = build("lenet5")
    chosen(model, "lora:1000")
    assert model.features[0].parametrizations.weight[0].down.shape == (6, 25)


@pytest.mark.parametrize(
    ("method", "unfreeze_at", "message"),
    [
        ("last:6", (), "--method last:6. lenet5 has 5 layers, its head included"),
        ("head", (2,), "--unfreeze-at names 1 epochs. --method head trains 0 layers below the head"),
        ("last:3", (1, 2, 3), "--unfreeze-at names 3 epochs. --method last trains 2 layers"),
    ],
)
def test_refused(method, unfreeze_at, message):
    with pytest.raises(UsageError, match=message):
        chosen(build("lenet5"), method, unfreeze_at=unfreeze_at)
