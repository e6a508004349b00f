"""The operators in torch's own eyes: schema, fake tensors, FLOPs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from convpool import ConvReLUMaxPool2d, operators
from convpool.planning import plan_for
from convpool.testing import cases, parity


@pytest.mark.parametrize("name", ["cnn-2", "mixed-1", "batch-0"])
def test_opcheck(name, backend) -> None:
    """Schema and fake tensors; torch's other checks are for operators with an autograd kernel, and ours have none."""
    case = cases.by_name(name)
    inputs = parity.make_inputs(case)
    checks = ("test_schema", "test_faketensor")
    for x in (inputs.x, inputs.x.contiguous(memory_format=torch.channels_last)):
        settings, call = inputs.settings.pack(), plan_for(x, inputs.weight, inputs.settings, backend).call
        arguments = (x, inputs.weight, inputs.bias, settings, call, True)
        torch.library.opcheck(operators.forward, arguments, test_utils=checks)
        y, code = operators.forward(*arguments)
        for needs in ([True, True, True], [False, True, True], [True, False, False]):
            arguments = (torch.ones_like(y), code, x, inputs.weight, x.shape[2:], settings, call, needs)
            torch.library.opcheck(operators.backward, arguments, test_utils=checks)


def test_flops_are_counted_as_torch_counts_its_layers(backend) -> None:
    layer, x = ConvReLUMaxPool2d(3, 8, 3, padding=1), torch.randn(2, 3, 9, 9, requires_grad=True)

    def count(plain: bool) -> int:
        layer.plain = plain
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        return counter.get_total_flops()

    assert count(plain=False) == count(plain=True) == 3 * 2 * (2 * 8 * 9 * 9) * 27
