"""Muon's step of a kernel: against float64, its directions, and the bits that trainings on CPUs have always had."""

import pytest
import torch

from mnistfast.ops.orthogonal import orthogonalised, step_kernel

LR, MOMENTUM = 0.03, 0.9
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("shape", [(16, 72), (72, 16), (20, 20)])
def test_singular_values_become_about_one_and_directions_stay(shape):
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = 7 * u @ torch.diag(torch.linspace(0.2, 1, min(shape))) @ vh
    values = torch.diag(u.T @ orthogonalised(matrix) @ vh.T)
    assert values.min() > 0.6
    assert values.max() < 1.25
    assert torch.linalg.norm(orthogonalised(matrix) - u @ torch.diag(values) @ vh) < 1e-4  # in no other direction


def test_zero_stays_zero():
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))


def made(shape, memory_format=torch.contiguous_format, size=1e-2):
    """A kernel of zeros, in which a step shows best, a gradient and an average, of singular values far apart."""
    generator = torch.Generator().manual_seed(sum(shape))
    flat = torch.randn(2, shape[0], shape[1] * shape[2] * shape[3], generator=generator)
    flat *= size * torch.logspace(0, -2, shape[0])[:, None]
    return [t.view(shape).to(memory_format=memory_format) for t in (torch.zeros(shape), *flat)]


def stepped(tensors, weight_decay, lr=None, momentum=MOMENTUM):
    """Returns kernel and average after a step."""
    kernel, gradient, average = tensors
    rate = torch.tensor(LR, dtype=torch.float64) if lr is None else lr
    step_kernel(kernel, gradient, average, rate, momentum=momentum, weight_decay=weight_decay)
    return kernel, average


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    "shape", [(16, 6, 5, 5), (5, 3, 2, 3), (33, 2, 2, 3), (40, 2, 3, 3), (1, 4, 3, 3), (64, 2, 1, 1)]
)
def test_against_float64(way, shape, memory_format, inside):
    tensors = [inside(t) for t in made(shape, memory_format)]
    gradient = tensors[1].clone()
    wanted = plain(made(shape), 0.1)
    kernel, average = stepped(tensors, 0.1)
    # Three rounds raise what was rounded by up to 3.4445 each; the rate and the size of a step multiply it.
    rounding = LR * step_size(kernel) * 3.4445**3 * 2**-23
    torch.testing.assert_close(kernel, wanted[0].float(), rtol=0, atol=rounding)
    torch.testing.assert_close(average, wanted[1].float(), rtol=1e-6, atol=1e-9)
    assert torch.equal(tensors[1], gradient)


def step_size(kernel):
    """Which makes an orthogonal matrix of the kernel's shape have entries of a mean square root of 0.2."""
    return 0.2 * max(kernel.flatten(1).shape) ** 0.5


def plain(tensors, weight_decay):
    """The step in float64, by the textbook's formulas."""
    kernel, gradient, average = (t.double() for t in tensors)
    average = MOMENTUM * average + (1 - MOMENTUM) * gradient
    x = ((1 - MOMENTUM) * gradient + MOMENTUM * average).flatten(1)
    x /= x.norm()
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return kernel * (1 - LR * weight_decay) - LR * step_size(kernel) * x.view_as(kernel), average


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_bits_are_those_of_a_rate_that_is_a_number(memory_format, weight_decay):
    tensors = [torch.randn(13, 5, 3, 3).to(memory_format=memory_format), *made((13, 5, 3, 3), memory_format)[1:]]
    kernel, gradient, average = (t.clone() for t in tensors)
    ours = stepped(tensors, weight_decay)
    average.lerp_(gradient, 1 - MOMENTUM)
    update = orthogonalised(gradient.lerp(average, MOMENTUM).flatten(1))
    kernel.mul_(1 - LR * weight_decay)
    kernel.add_(update.view_as(kernel), alpha=-LR * step_size(kernel))
    assert torch.equal(ours[0], kernel)
    assert torch.equal(ours[1], average)


def test_weights_decay(way, inside):
    kernel, gradient, average = (inside(t) for t in made((6, 2, 3, 3)))
    start = kernel.fill_(2.0).clone()
    gradient.zero_()
    average.zero_()
    kernel, _ = stepped((kernel, gradient, average), 0.5)
    torch.testing.assert_close(kernel, start * (1 - LR * 0.5))


@pytest.mark.parametrize("size", [1e-12, 1e6])
def test_any_size_of_gradients_makes_the_same_step(way, size):
    """But where its norm is no more than what is added to it, lest there be a division by zero."""
    ours, usual = stepped(made((6, 2, 3, 3), size=size), 0.0)[0], stepped(made((6, 2, 3, 3)), 0.0)[0]
    if size > 1:
        torch.testing.assert_close(ours, usual, rtol=1e-3, atol=1e-5)
    else:
        assert ours.abs().max() < usual.abs().max() / 100


def test_nan_is_not_hidden(way):
    kernel, gradient, average = made((6, 2, 3, 3))
    gradient[2, 1, 0, 0] = float("nan")
    assert stepped((kernel, gradient, average), 0.0)[0].isnan().all()


def test_rows_may_lie_scattered(way):
    across = [t.transpose(0, 1) for t in made((5, 3, 2, 2))]
    wanted = plain([t.contiguous() for t in across], 0.0)[0]
    torch.testing.assert_close(stepped(across, 0.0)[0], wanted.float(), rtol=1e-4, atol=1e-5)
