"""The optimiser muon: orthogonal updates for kernels over several channels, AdamW's for the rest."""

import torch

from mnistfast.ops.orthogonal import orthogonalised
from mnistfast.training.muon import Muon


def steps(optimizer, parameters, count=5):
    """Takes `count` steps of the same made-up gradients, in float32."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_what_is_no_kernel_over_channels_is_adamws():
    torch.manual_seed(0)
    first = [torch.randn(8, 1, 3, 3), torch.randn(8), torch.randn(10, 40)]
    ours, theirs = ([weight.clone().requires_grad_() for weight in first] for _ in range(2))
    steps(Muon(ours, 0.01, (0.7, 0.9), weight_decay=0.1), ours)
    steps(torch.optim.AdamW(theirs, 0.01, (0.7, 0.9), weight_decay=0.1), theirs)
    for weight, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, expected)


def test_kernels_go_against_the_momentum_made_orthogonal():
    torch.manual_seed(0)
    start = torch.randn(6, 4, 3, 3)
    kernel = start.clone().to(memory_format=torch.channels_last).requires_grad_()
    optimizer = Muon([kernel], 0.02, momentum=0.8, weight_decay=0.5)
    expected, average = start.clone(), torch.zeros(6, 36)
    for _ in range(3):
        kernel.grad = torch.randn(6, 4, 3, 3)
        optimizer.step()
        gradient = kernel.grad.flatten(1)
        average = 0.8 * average + 0.2 * gradient
        update = orthogonalised(0.2 * gradient + 0.8 * average).view(6, 4, 3, 3)
        expected = expected * (1 - 0.02 * 0.5) - 0.02 * 0.2 * 36**0.5 * update
    torch.testing.assert_close(kernel.detach(), expected)


def test_parameters_without_a_gradient_stay():
    kernel, bias = torch.randn(4, 2, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    before = kernel.detach().clone(), bias.detach().clone()
    bias.grad = torch.ones(4)
    Muon([kernel, bias], 0.1).step()
    assert torch.equal(kernel, before[0])
    assert not torch.equal(bias, before[1])


def test_a_run_of_a_cpu_goes_on_elsewhere():
    """The count of steps lies beside the fused kernel that reads it; a state of before it was said so loads too."""
    weights = [torch.randn(4, 2, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)]
    saved = Muon(weights, 0.1)
    steps(saved, weights)
    state = saved.state_dict()
    for group in state["param_groups"]:
        group.pop("fused", None)
    elsewhere = [weight.detach().to("meta").requires_grad_() for weight in weights]
    resumed = Muon(elsewhere, 0.1)
    resumed.load_state_dict(state)
    kept = [tensor for weight in elsewhere for tensor in resumed.state[weight].values()]
    assert len(kept) == 4
    assert {tensor.device.type for tensor in kept} == {"meta"}
