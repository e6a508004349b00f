"""First weights from the images: a fixed basis of their patches, and a last layer of zeros."""

import pytest
import torch

from mnistfast.models.zoo import build
from mnistfast.training.start import start_from_patches


@pytest.fixture
def images():
    """Noise whose rows are far more alike than its columns: (40, 1, 28, 28)."""
    torch.manual_seed(0)
    return torch.randn(40, 1, 28, 1) + 0.3 * torch.randn(40, 1, 28, 28) + 1


def started(name, images):
    torch.manual_seed(1)
    model = build(name)
    conv = next(layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d))
    drawn = conv.weight.detach().clone()
    start_from_patches(model, images)
    return model, conv, drawn


def test_filters_are_the_leading_components_with_both_signs(images):
    _, conv, _ = started("speedrun", images)
    filters = conv.weight.flatten(1)
    torch.testing.assert_close(filters[:8] @ filters[:8].T, torch.eye(8) * 0.25)  # orthogonal, of norm 1 / 2
    assert torch.equal(filters[8:], -filters[:8])
    patches = images.unfold(2, 5, 1).unfold(3, 5, 1).reshape(-1, 25)
    along = ((patches - patches.mean(0)) @ filters[:8].T).var(0)
    assert along[:5].min() > 5 * along[5:].max()  # the five independent rows of a patch
    columns = conv.weight[0, 0].std(1) / conv.weight[0, 0].norm()
    assert columns.max() < 0.05  # a filter of rows


def test_filters_are_centred(images):
    """The mean patch gives nothing, whatever the brightness."""
    _, conv, _ = started("speedrun", images)
    patches = images.unfold(2, 5, 3).unfold(3, 5, 3).reshape(-1, 25)
    response = patches.mean(0) @ conv.weight.flatten(1).T + conv.bias
    torch.testing.assert_close(response, torch.zeros(16), atol=1e-5, rtol=0)


def test_more_filters_than_components_keep_their_drawn_weights(images):
    _, conv, drawn = started("cnn2", images)  # 32 filters of 9 pixels
    assert torch.equal(conv.weight[18:], drawn[18:])
    assert not torch.equal(conv.weight[17], drawn[17])


def test_only_the_first_layer_is_fixed_and_the_last_is_zero(images):
    model, _, _ = started("cnn2", images)
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["features.0.weight", "features.0.bias"]
    with_norm, _, _ = started("cnn2-bn", images)
    assert [name for name, p in with_norm.named_parameters() if not p.requires_grad] == ["features.0.conv.weight"]
    assert not model.head[-1].weight.any()
    assert not model.head[-1].bias.any()
    assert model.head[0].weight.any()


def test_background_is_no_pattern():
    """Patches without contrast are left out: a few strokes on much background decide the filters alone."""
    torch.manual_seed(0)
    images = torch.zeros(40, 1, 28, 28)
    images[0, 0, 8:20, 8:20] = torch.randn(12, 12)
    _, conv, _ = started("speedrun", images)
    assert conv.bias.abs().max() < 10 * conv.weight.abs().max()
    assert torch.isfinite(conv.weight).all()
