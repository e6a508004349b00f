"""The operators in torch's own eyes: schema, fake tensors, FLOPs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from convpool.batchnorm import operators
from convpool.planning import normalised, plan_for
from convpool.testing import cases, parity
from tests.convpool.batchnorm.layers import by_each_backend, pair

pytestmark = pytest.mark.usefixtures("one_thread")


@by_each_backend
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", ["cnn-1", "mixed-1"])
def test_opcheck(name, affine, backend) -> None:
    """Schema and fake tensors; torch's other checks are for operators with an autograd kernel, and ours have none."""
    inputs = parity.make_inputs(cases.by_name(name))
    weight, settings, checks = inputs.weight, inputs.settings.pack(), ("test_schema", "test_faketensor")
    call = plan_for(inputs.x, weight, inputs.settings, backend, normalised).call
    gamma, beta = (torch.randn(len(weight)) if affine else None for _ in range(2))
    for x in (inputs.x, inputs.x.contiguous(memory_format=torch.channels_last)):
        arguments = (x, weight, gamma, beta, 1e-5, settings, call, True)
        torch.library.opcheck(operators.forward, arguments, test_utils=checks)
        torch.library.opcheck(operators.forward, (*arguments[:-1], False), test_utils=checks)
        y, code, *found = operators.forward(*arguments)
        for needs in ([True] * 4, [False, True, False, True], [True, False, False, False], [False] * 4):
            arguments = (torch.ones_like(y), code, x, weight, gamma, *found, 1e-5, settings, call, needs)
            torch.library.opcheck(operators.backward, arguments, test_utils=checks)


@by_each_backend
def test_flops_are_counted_as_torch_counts_its_layers(backend) -> None:
    layer, x = pair(3, 8, 3, padding=1)[0], torch.randn(2, 3, 9, 9, requires_grad=True)

    def count(plain: bool) -> int:
        layer.plain = plain
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        return counter.get_total_flops()

    assert count(plain=False) == count(plain=True) == 3 * 2 * (2 * 8 * 9 * 9) * 27


@by_each_backend
def test_results_hold_only_what_is_asked_for(backend) -> None:
    inputs = parity.make_inputs(cases.by_name("cnn-1"))
    call = plan_for(inputs.x, inputs.weight, inputs.settings, backend, normalised).call
    options = 1e-5, inputs.settings.pack(), call
    _, code, *found = operators.forward(inputs.x, inputs.weight, None, None, *options, True)
    assert operators.forward(inputs.x, inputs.weight, None, None, *options, False)[1].numel() == 0
    sizes = inputs.x.numel(), inputs.weight.numel(), len(inputs.weight), len(inputs.weight)
    for i in range(4):
        needs = [i == j for j in range(4)]
        grads = operators.backward(inputs.dy, code, inputs.x, inputs.weight, None, *found, *options, needs)
        assert [g.numel() for g in grads] == [size if needed else 0 for size, needed in zip(sizes, needs, strict=True)]


@by_each_backend
def test_a_changed_code_is_refused(backend) -> None:
    inputs = parity.make_inputs(cases.by_name("cnn-1"))
    call = plan_for(inputs.x, inputs.weight, inputs.settings, backend, normalised).call
    options = 1e-5, inputs.settings.pack(), call
    _, code, *found = operators.forward(inputs.x, inputs.weight, None, None, *options, True)
    with pytest.raises(RuntimeError, match="as the forward pass left it"):
        operators.backward(inputs.dy, code[1:], inputs.x, inputs.weight, None, *found, *options, [True] * 4)
