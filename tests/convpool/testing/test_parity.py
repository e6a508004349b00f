"""Every backend against torch's own layers in float64, over the whole table of shapes."""

import pytest
import torch

from convpool import eager, registry
from convpool.geometry import DEAD
from convpool.testing import cases, parity
from convpool.testing.cases import CASES, Case
from convpool.torch_ops import winner_values
from tests.convpool.samples import apply

DTYPES = (torch.float64, torch.float16, torch.bfloat16)
A_FEW = ("cnn-2", "lenet5-1", "resnet-stem", "same-even-dilated", "groups-2", "mixed-1", "batch-0")
# A layer of each kind: direct, by channels, flattened, empty, single, dilated, with padded and with overlapping pools.
A_KIND_EACH = ("cnn-1", "cnn-2", "lenet5-2", "batch-0", "batch-1", "same-even-dilated", "pool-padded", "pool-overlap")


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.quick_interpreted(*A_KIND_EACH)
def test_float32(case: Case, layout: parity.Layout, backend: str) -> None:
    integers = parity.check(parity.make_inputs(case, layout=layout, integers=True), backend, exact=True)
    assert integers.ok, integers
    rounded = parity.check(parity.make_inputs(case, layout=layout), backend)
    assert rounded.ok, rounded


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", A_FEW)
@pytest.mark.quick_interpreted("same-even-dilated", "batch-0")
def test_other_dtypes(name: str, dtype: torch.dtype, backend: str) -> None:
    case = cases.by_name(name)
    inputs = parity.make_inputs(case, dtype)
    served = registry.backend(backend).serves(case.geometry, dtype, torch.device("cpu"))
    if isinstance(served, str):
        with pytest.raises(RuntimeError, match="cannot serve"):
            parity.check(inputs, backend)
    else:
        result = parity.check(inputs, backend)
        assert result.ok, result


@pytest.mark.parametrize("name", A_FEW)
@pytest.mark.quick_interpreted("cnn-2", "batch-0")
def test_repeats_are_bit_identical(name: str, backend: str) -> None:
    inputs = parity.make_inputs(cases.by_name(name))

    def run() -> list[torch.Tensor]:
        x, weight = inputs.x.clone().requires_grad_(), inputs.weight.clone().requires_grad_()
        y, code = apply(x, weight, inputs.bias, inputs.settings, backend)
        return [y, code, *torch.autograd.grad(y, (x, weight), inputs.dy)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_gradients_at_torchs_winners_are_torchs_gradients() -> None:
    """What rounded gradients are held against is torch's own result where the winners are torch's own."""
    inputs = parity.make_inputs(cases.by_name("mixed-1"), torch.float64)
    leaves = [t.clone().requires_grad_() for t in (inputs.x, inputs.weight, inputs.bias)]
    code = apply(*leaves, inputs.settings, "reference")[1]
    gathered = winner_values(*leaves, code, inputs.geometry)
    layers = eager.relu_then_pool(*leaves, inputs.settings)
    torch.testing.assert_close(gathered, layers)
    ours, torchs = (torch.autograd.grad(value, leaves, inputs.dy) for value in (gathered, layers))
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b)


# Ten bugs that a kernel could have, planted into right results; the check must catch each.


def wrong_tie(inputs, y, code, grads):
    """The right column wins where both are equal: the layer run on mirrored data, its winners mirrored back."""
    x, weight = inputs.x.flip(3), inputs.weight.flip(3)
    mirrored = apply(x, weight, inputs.bias, inputs.settings, "reference")[1].flip(3)
    code.copy_(torch.where(mirrored == DEAD, DEAD, mirrored ^ 1))


def dropped_row(inputs, y, code, grads):
    grads["dx"][:, :, -1] = 0


def missing_bias_gradient(inputs, y, code, grads):
    grads["db"].zero_()


def shifted_code(inputs, y, code, grads):
    code[code != DEAD] = (code[code != DEAD] + 1) % 4


def unwritten_element(inputs, y, code, grads):
    y[0, 0, 0, 0] = float("nan")


def bias_added_after_relu(inputs, y, code, grads):
    y.copy_((y - inputs.bias[:, None, None]).relu() + inputs.bias[:, None, None])


def dead_gradient_leaks(inputs, y, code, grads):
    grads["db"].copy_(inputs.dy.sum((0, 2, 3)))


def transposed_weight_gradient(inputs, y, code, grads):
    grads["dw"].copy_(grads["dw"].transpose(2, 3).clone())


def one_image_forgotten(inputs, y, code, grads):
    grads["dx"][0] = 0


def negative_passes(inputs, y, code, grads):
    y.copy_(eager.pool(eager.conv(inputs.x, inputs.weight, inputs.bias, inputs.settings), inputs.settings))


@pytest.mark.parametrize(
    "bug",
    [
        wrong_tie,
        dropped_row,
        missing_bias_gradient,
        shifted_code,
        unwritten_element,
        bias_added_after_relu,
        dead_gradient_leaks,
        transposed_weight_gradient,
        one_image_forgotten,
        negative_passes,
    ],
    ids=lambda bug: bug.__name__,
)
def test_the_check_catches(bug) -> None:
    inputs = parity.make_inputs(cases.by_name("cnn-1"), integers=True)
    leaves = [t.clone().requires_grad_() for t in (inputs.x, inputs.weight, inputs.bias)]
    y, code = apply(*leaves, inputs.settings, "reference")
    grads = dict(zip(("dx", "dw", "db"), torch.autograd.grad(y, leaves, inputs.dy), strict=True))
    y = y.detach()
    assert parity.check_results(inputs, y, code, grads, exact=True).ok
    bug(inputs, y, code, grads)
    assert not parity.check_results(inputs, y, code, grads, exact=True).ok


@pytest.mark.parametrize(("error", "ok"), [(1e-6, True), (1e-3, False)])
def test_a_vendor_that_rounds_is_held_to_the_bound_of_rounding(error, ok) -> None:
    """Gradients of fast transforms, not exact on integers: refused by default, judged by rounding where told so."""
    inputs = parity.make_inputs(cases.by_name("cnn-2"))

    class Inexact(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return weight.clone()

        @staticmethod
        def backward(ctx, dy):
            return dy + error * dy.abs().max()

    def layer(x, weight, bias, settings):
        return eager.relu_then_pool(x, Inexact.apply(weight), bias, settings)

    assert not parity.check_layer(inputs, layer, integers=True).ok
    assert parity.check_layer(inputs, layer, integers=True, exact=False).ok == ok
