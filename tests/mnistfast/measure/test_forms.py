"""The forms of a model compute the same, with the same parameters."""

from copy import deepcopy

import pytest
import torch

from convpool import ConvReLUMaxPool2d
from mnistfast.measure.forms import FORMS, FUSED
from mnistfast.models.zoo import FUSED_LAYERS, MODELS, build


@pytest.mark.parametrize("name", MODELS)
def test_forms_compute_the_same(name):
    torch.manual_seed(0)
    model = build(name)
    images = torch.randn(3, *model.input_size)
    expected = deepcopy(model)(images)
    for label, make in FORMS.items():
        form = make(model)
        torch.testing.assert_close(form(images), expected, msg=label)
        assert [n for n, _ in form.named_parameters()] == [n for n, _ in model.named_parameters()]
        ours = [layer for layer in form.modules() if isinstance(layer, FUSED_LAYERS)]
        assert bool(ours) == label.startswith(FUSED)
        assert next(form.parameters()) is not next(model.parameters())


def test_padding_stride_and_pool_are_kept():
    torch.manual_seed(0)
    layer = ConvReLUMaxPool2d(
        4, 6, 3, 2, 1, 1, 2, False, pool_kernel_size=3, pool_stride=2, pool_padding=1, ceil_mode=True
    )
    model = torch.nn.Sequential(layer)
    x = torch.randn(2, 4, 21, 20)
    for make in FORMS.values():
        torch.testing.assert_close(make(model)(x), model(x))
