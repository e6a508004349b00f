"""Muon's update of a convolution's kernel: the orthogonal matrix nearest to its averaged gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from mnistfast.ops.placement import takes_kernel

# Newton-Schulz iteration of degree five with the coefficients of Jordan et al. 2024 ("Muon"), chosen to raise small
# singular values fast: from 1 / 50 of the norm on they come out between 0.68 and 1.21 after three rounds, which
# trains as well here as the usual five.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 3
# Entries of the update have this mean square root, as Adam's do, so that one learning rate suits both (Liu et al. 2025,
# "Muon is scalable for LLM training", equation 4).
_RMS = 0.2
# One multiprocessor does all of a step, so a kernel of 64 channels over 64, 3 x 3 each, is as large as it pays.
_MOST_SHORT, _MOST_LONG = 64, 576


def step_kernel(
    kernel: Tensor, gradient: Tensor, average: Tensor, lr: Tensor, *, momentum: float, weight_decay: float
) -> None:
    """Takes Muon's step of one convolution's kernel, the matrix (C_out, C_in * K * K), in place. Knows no gradients.

    Args:
        kernel: float32 (C_out, C_in, K, K).
        gradient: of kernel.
        average: of the gradients of earlier steps, zeros at first; is updated too.
        lr: the learning rate, (): float64 on CPUs, float32 elsewhere.
        momentum: factor of `average`, used with Nesterov's look ahead.
        weight_decay: decoupled.
    """
    step_size = _RMS * max(_sides(kernel)) ** 0.5
    if takes_kernel(kernel) and _fits(kernel, gradient, average):
        from mnistfast.ops.orthogonal_kernel import launch_step

        launch_step(
            kernel,
            gradient,
            average,
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            step_size=step_size,
            coefficients=(_A, _B, _C),
            rounds=_ROUNDS,
        )
        return
    average.lerp_(gradient, 1 - momentum)
    ahead = gradient.lerp(average, momentum)
    update = orthogonalised(ahead.flatten(1))
    if weight_decay:
        kernel.mul_(1 - lr * weight_decay)
    kernel.addcmul_(update.view_as(kernel), lr * -step_size)


def _fits(kernel: Tensor, gradient: Tensor, average: Tensor) -> bool:
    """Whether one program can take the step: by the matrix' size, and as a row's entries lie side by side."""
    short, long = sorted(_sides(kernel))
    dense = kernel.is_contiguous() or kernel.is_contiguous(memory_format=torch.channels_last)
    alike = kernel.stride() == gradient.stride() == average.stride()
    return short <= _MOST_SHORT and long <= _MOST_LONG and dense and alike


def _sides(kernel: Tensor) -> tuple[int, int]:
    """Rows and columns of the kernel as a matrix."""
    return len(kernel), kernel.numel() // len(kernel)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Returns about U V^T of `matrix` = U S V^T (M, N): the singular values become about 1, its directions stay."""
    tall = len(matrix) > matrix.shape[1]
    x = matrix.T if tall else matrix  # the products are of the shorter side
    x = x / (x.norm() + 1e-7)
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return x.T if tall else x
