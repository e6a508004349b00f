"""What is measured, and that a form is held against float64 first."""

import pytest
import torch

from convpool.testing.candidates import ParityError
from convpool.testing.cases import BATCH_NORM
from mnistfast.measure import layers, workloads
from mnistfast.measure.forms import FUSED
from mnistfast.measure.workloads import Epoch, Inference, Step, real_images

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_the_default_is_a_part_of_everything():
    few, all_ = ({str(each) for each in workloads.workloads(CPU, everything=flag)} for flag in (False, True))
    assert few < all_
    groups = {each.group for each in workloads.workloads(CPU)}
    assert groups == {
        "layer, training", "layer, inference", "layer with batch norm, training", "growth with batch",
        "growth with channels", "training step", "inference", "epoch",
    }  # fmt: skip
    assert {f"inference: cnn2, batch {batch}" for batch in (1, 64, 1024)} <= few
    steps = {each for each in few if each.startswith("training step")}
    assert steps == {"training step: cnn2, batch 128", "training step: lenet5, batch 128"}


def test_a_gpus_steps():
    """A large batch beside the preset's, each called and replayed, and torch.compile's graphs among the rivals."""
    steps = [each for each in workloads.workloads(GPU) if type(each) is Step]
    assert [step.name for step in steps] == ["cnn2, batch 128", "lenet5, batch 128", "cnn2, batch 1024"]
    for step in steps:
        assert step.graphs == ("off", "on")
        assert step.modes == ("default", "reduce-overhead")
    others = [Inference("cnn2", GPU, 4), Epoch("cnn2", GPU), Step("cnn2", CPU)]
    assert [each.graphs for each in others] == [("off",), ("auto",), ("off",)]
    assert [each.modes for each in (others[0], others[2])] == [("default",)] * 2


def test_forms_are_known_by_name_before_one_is_made():
    """On a device that is not there, too."""
    for each in (
        Step("lenet5", CPU),
        layers.Layer(BATCH_NORM[0], True, CPU),
        layers.NormLayer(BATCH_NORM[0], True, CPU),
    ):
        assert each.names == list(each.forms())
    called = Step("lenet5", CPU).names
    assert Step("lenet5", GPU).names == [*called, *(f"{name}, replayed" for name in called)]
    assert Epoch("lenet5", GPU).names == Inference("lenet5", GPU, 4).names == called


def test_a_step_is_its_devices():
    assert [Step("speedrun", torch.device(name)).config.batch_size for name in ("cpu", "cuda")] == [384, 256]


def test_only_a_layer_on_images_needs_no_gradient_for_them():
    on_images = {each.name for each in workloads.workloads(CPU) if isinstance(each, layers.Layer) and not each.dx}
    without_norm = {"cnn-1", "lenet5-1", "fast-1", "cifar-1", "resnet-stem"}
    assert on_images == without_norm | {case.name for case in BATCH_NORM}


def test_a_gpus_layers_have_no_norm():
    """`convpool` is there a backend by its name, and that one takes no statistics of a batch."""
    found = workloads.workloads(GPU)
    assert not any(isinstance(each, layers.NormLayer) for each in found)


@pytest.mark.parametrize("backward", [True, False])
def test_a_model_that_computes_something_else_is_refused(backward):
    step = Step("lenet5", CPU)
    images, _ = real_images(8, CPU)
    forms = {name: form.model for name, form in step.forms().items()}
    for name, form in forms.items():
        before = [weight.clone() for weight in form.parameters()]
        step.check(form, images, backward=backward)
        assert all(torch.equal(a, b) for a, b in zip(before, form.parameters(), strict=True)), name
    wrong = forms[FUSED]
    wrong.features[1].register_forward_hook(lambda module, inputs, y: y + (y > y.mean()).float())
    with pytest.raises(ParityError, match="wrong logits"):
        step.check(wrong, images, backward=backward)


def test_a_wrong_gradient_is_refused():
    step = Step("lenet5", CPU)
    wrong = step.forms()[FUSED].model
    wrong.features[0].weight.register_hook(lambda gradient: gradient + 1)
    with pytest.raises(ParityError, match=r"wrong features\.0\.weight"):
        step.check(wrong, real_images(8, CPU)[0], backward=True)


def test_steps_learn_and_inference_does_not():
    step, inference = Step("lenet5", CPU), Inference("lenet5", CPU, 4)
    form = step.forms()[FUSED]
    before = [weight.clone() for weight in form.model.parameters()]
    inference.calls(form)[0]()
    assert all(torch.equal(a, b) for a, b in zip(before, form.model.parameters(), strict=True))
    step.calls(form)[0]()
    assert not any(torch.equal(a, b) for a, b in zip(before, form.model.parameters(), strict=True))
    assert step.facts()["kept_bytes"][FUSED] < step.facts()["kept_bytes"]["eager"] / 3
