"""The classifiers of torchvision, random weights: the runs that fuse, and fused models that compute what they did."""

import pytest
import torch

import convpool

torchvision = pytest.importorskip("torchvision", reason="needs the extra `transfer` (torchvision)")
pytestmark = pytest.mark.usefixtures("one_thread")

# name: side of the input (near the least it takes; deep models whose norms would be of two values, which makes 1e-5 of
# a rounding, get more), runs that `auto` fuses in training mode, runs fused in eval mode. `reference` fuses these in
# training mode too; `auto` those without a norm, and stems whose input has no gradient.
FUSED = {
    "alexnet": (64, 3, 3),
    "vgg11": (32, 5, 5),
    "vgg11_bn": (32, 1, 5),
    "squeezenet1_0": (32, 1, 1),
    "resnet18": (32, 1, 1),
    "densenet121": (64, 1, 1),
    "googlenet": (64, 1, 2),
    "inception_v3": (299, 0, 2),
    "shufflenet_v2_x0_5": (32, 1, 1),
    "mobilenet_v2": (32, 0, 0),
    "efficientnet_b0": (32, 0, 0),
    "mnasnet0_5": (32, 0, 0),
    "regnet_y_400mf": (32, 0, 0),
    "convnext_tiny": (32, 0, 0),
    "vit_b_16": (224, 0, 0),
    "swin_t": (32, 0, 0),
    "maxvit_t": (224, 0, 0),
}
SLOW = {
    "vgg13": (32, 5, 5),
    "vgg16": (32, 5, 5),
    "vgg19": (32, 5, 5),
    "vgg13_bn": (32, 0, 5),
    "vgg16_bn": (32, 0, 5),
    "vgg19_bn": (32, 0, 5),
    "squeezenet1_1": (32, 1, 1),
    "resnet50": (64, 1, 1),
    "resnet152": (64, 1, 1),
    "resnext50_32x4d": (64, 1, 1),
    "wide_resnet50_2": (64, 1, 1),
    "densenet169": (64, 1, 1),
    "shufflenet_v2_x1_0": (64, 1, 1),
    "mobilenet_v3_large": (32, 0, 0),
    "efficientnet_v2_s": (32, 0, 0),
    "regnet_x_400mf": (32, 0, 0),
}
QUICK = {"squeezenet1_0": "reference", "shufflenet_v2_x0_5": "reference", "resnet18": "auto"}


def classifier(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=10, **options)


# A second or two each.
LARGE = {
    *("inception_v3", "maxvit_t", "swin_t", "vit_b_16", "convnext_tiny", "vgg11_bn", "googlenet", "regnet_y_400mf"),
    *("efficientnet_b0", "mobilenet_v2", "densenet121"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW.keys() | LARGE else []) for n in FUSED | SLOW]
)
def test_number_of_fused_runs(name: str) -> None:
    _, in_training, in_eval = (FUSED | SLOW)[name]
    model = classifier(name)
    keys = list(model.state_dict())
    assert len(convpool.fusion_report(model).fused) == in_training
    convpool.fuse(model, inplace=True)
    assert len(convpool.fusion_report(model).fused) == in_training
    with convpool.use_backend("reference"):
        assert len(convpool.fusion_report(model).fused) == in_eval
    assert len(convpool.fusion_report(model.eval()).fused) == in_eval
    assert list(model.state_dict()) == keys


# Deeper or wider than another one of its kind, and tens of seconds each.
SIBLINGS = {
    *("vgg13", "vgg19", "vgg13_bn", "vgg19_bn", "resnet152", "resnext50_32x4d", "wide_resnet50_2", "densenet169"),
}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *QUICK.items(),
        *(
            pytest.param(name, "reference", marks=pytest.mark.exhaustive if name in SIBLINGS else pytest.mark.slow)
            for name in FUSED | SLOW
        ),
    ],
)
def test_same_logits_loss_and_gradients(name: str, backend: str) -> None:
    """In float64, so that a wrong term stands out from rounding; in training mode, buffers too, and in eval mode.

    1e-9: rounding (2e-16) times the growth through up to 200 layers of random, untrained weights, where 1e-12 was seen.
    """
    side = (FUSED | SLOW)[name][0]
    model = classifier(name).double()
    example = torch.randn(2, 3, side, side, dtype=torch.float64)
    with convpool.use_backend(backend):
        differences = convpool.verify(model, convpool.fuse(model), example)
    assert differences.within(1e-9), str(differences)
