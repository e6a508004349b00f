"""What is measured, and that a form is held against float64 first."""

import pytest
import torch

from convpool.testing.candidates import ParityError
from convpool.testing.cases import BATCH_NORM
from mnistfast.measure import layers, workloads
from mnistfast.measure.forms import FORMS, FUSED
from mnistfast.measure.workloads import Inference, Step, real_images

CPU = torch.device("cpu")


def test_the_default_is_a_part_of_everything():
    few, all_ = ({str(each) for each in workloads.workloads(CPU, everything=flag)} for flag in (False, True))
    assert few < all_
    groups = {each.group for each in workloads.workloads(CPU)}
    assert groups == {
        "layer, training", "layer, inference", "layer with batch norm, training", "growth with batch",
        "growth with channels", "training step", "inference", "epoch",
    }  # fmt: skip
    assert {f"inference: cnn2, batch {batch}" for batch in (1, 64, 1024)} <= few


def test_a_step_is_its_devices():
    assert [Step("speedrun", torch.device(name)).config.batch_size for name in ("cpu", "cuda")] == [384, 256]


def test_only_a_layer_on_images_needs_no_gradient_for_them():
    on_images = {each.name for each in workloads.workloads(CPU) if isinstance(each, layers.Layer) and not each.dx}
    without_norm = {"cnn-1", "lenet5-1", "fast-1", "cifar-1", "resnet-stem"}
    assert on_images == without_norm | {case.name for case in BATCH_NORM}


def test_a_gpus_layers_have_no_norm():
    """`convpool` is there a backend by its name, and that one takes no statistics of a batch."""
    found = workloads.workloads(torch.device("cuda"))
    assert not any(isinstance(each, layers.NormLayer) for each in found)


@pytest.mark.parametrize("backward", [True, False])
def test_a_model_that_computes_something_else_is_refused(backward):
    step = Step("lenet5", CPU)
    images, _ = real_images(8, CPU)
    for name, form in step.forms().items():
        before = [weight.clone() for weight in form.parameters()]
        step.check(form, images, backward=backward)
        assert all(torch.equal(a, b) for a, b in zip(before, form.parameters(), strict=True)), name
    wrong = step.forms()[FUSED]
    wrong.features[1].register_forward_hook(lambda module, inputs, y: y + (y > y.mean()).float())
    with pytest.raises(ParityError, match="wrong logits"):
        step.check(wrong, images, backward=backward)


def test_a_wrong_gradient_is_refused():
    step = Step("lenet5", CPU)
    wrong = step.forms()[FUSED]
    wrong.features[0].weight.register_hook(lambda gradient: gradient + 1)
    with pytest.raises(ParityError, match=r"wrong features\.0\.weight"):
        step.check(wrong, real_images(8, CPU)[0], backward=True)


def test_steps_learn_and_inference_does_not():
    step, inference = Step("lenet5", CPU), Inference("lenet5", CPU, 4)
    form = FORMS[FUSED](step.forms()[FUSED])
    before = [weight.clone() for weight in form.parameters()]
    inference.calls(form)[0]()
    assert all(torch.equal(a, b) for a, b in zip(before, form.parameters(), strict=True))
    step.calls(form)[0]()
    assert not any(torch.equal(a, b) for a, b in zip(before, form.parameters(), strict=True))
    assert step.facts()["kept_bytes"][FUSED] < step.facts()["kept_bytes"]["eager"] / 3
