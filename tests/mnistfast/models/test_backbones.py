"""Large backbones: what they see of a small image, what is fused, what their heads are."""

import pytest
import torch
import torch.nn.functional as F

import convpool
from mnistfast.models import backbones
from mnistfast.models.adapters import choose
from mnistfast.models.zoo import BACKBONES, build
from mnistfast.options.finetuning import BACKBONES as CONFIGURED

torchvision = pytest.importorskip("torchvision")


def test_the_options_know_them():
    assert tuple(BACKBONES) == CONFIGURED == backbones.NAMES


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_image_becomes_a_photograph(channels):
    adapter = backbones.features("vgg16", channels=channels, side=32)[0]
    images = torch.rand(2, channels, 28, 28)
    seen = adapter(images)
    assert seen.shape == (2, 3, 32, 32)
    published = torchvision.models.VGG16_Weights.DEFAULT.transforms()
    large = F.interpolate(images, (32, 32), mode="bilinear").repeat(1, 3 // channels, 1, 1)
    torch.testing.assert_close(seen, torchvision.transforms.functional.normalize(large, published.mean, published.std))


@pytest.mark.slow
def test_vgg16():
    model = build("vgg16", size=(1, 28, 28), side=32).eval()
    assert len(convpool.fusion_report(model.features[1]).fused) == 5
    assert [name for name, _ in model.head.named_parameters()] == ["0.weight", "0.bias"]
    images = torch.rand(2, 1, 28, 28)
    logits = model(images)
    assert logits.shape == (2, 10)
    plain = torchvision.models.vgg16(weights=None).features.eval()
    plain.load_state_dict(model.features[1].state_dict())
    pooled = plain(model.features[0](images)).mean((2, 3))
    torch.testing.assert_close(logits, model.head(pooled), rtol=1e-3, atol=1e-4)


def test_resnet50_and_its_head():
    model = build("resnet50", size=(3, 32, 32), side=32, hidden=[1024]).eval()
    assert len(convpool.fusion_report(model.features[1]).fused) == 1  # in eval mode, as a frozen one always is
    images = torch.rand(2, 3, 32, 32)
    embeddings = model.embed(images)
    assert embeddings.shape == (2, 2048)
    torch.testing.assert_close(model(embeddings), model(images), rtol=1e-4, atol=1e-4)
    assert choose(model, "head").trained == 2048 * 1024 + 1024 + 1024 * 10 + 10  # M6's head, all of it new
    again = build(model.name, **model.arguments)
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    "arguments", [{"side": 16}, {"side": 4096}, {"size": (2, 28, 28)}, {"size": (1, 9999, 9999)}, {"size": (28, 28)}]
)
def test_refused(arguments):
    with pytest.raises(ValueError, match=r"side is|channels is|size is"):
        build("vgg16", **arguments)
