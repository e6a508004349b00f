"""Muon's update of a convolution's kernel: the orthogonal matrix nearest to its averaged gradient."""

from __future__ import annotations

import torch
from torch import Tensor

# Newton-Schulz iteration of degree five with the coefficients of Jordan et al. 2024 ("Muon"), chosen to raise small
# singular values fast: from 1 / 50 of the norm on they come out between 0.68 and 1.21 after three rounds, which
# trains as well here as the usual five.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 3
# Entries of the update have this mean square root, as Adam's do, so that one learning rate suits both (Liu et al. 2025,
# "Muon is scalable for LLM training", equation 4).
_RMS = 0.2


def step_kernel(
    kernel: Tensor, gradient: Tensor, average: Tensor, lr: Tensor, *, momentum: float, weight_decay: float
) -> None:
    """Takes Muon's step of one convolution's kernel, in place, as the matrix (C_out, C_in * K * K).

    Args:
        kernel: float32 (C_out, C_in, K, K).
        gradient: of kernel.
        average: of the gradients of earlier steps, zeros at first; is updated too.
        lr: the learning rate, (): float64 on CPUs, float32 elsewhere.
        momentum: factor of `average`, used with Nesterov's look ahead.
        weight_decay: decoupled.
    """
    average.lerp_(gradient, 1 - momentum)
    ahead = gradient.lerp(average, momentum)
    update = orthogonalised(ahead.flatten(1))
    if weight_decay:
        kernel.mul_(1 - lr * weight_decay)
    kernel.addcmul_(update.view_as(kernel), lr * -step_size(update))


def step_size(matrix: Tensor) -> float:
    """What an orthogonal matrix of this shape is multiplied with, besides the learning rate."""
    return _RMS * max(matrix.shape) ** 0.5


def orthogonalised(matrix: Tensor) -> Tensor:
    """Returns about U V^T of `matrix` = U S V^T (M, N): the singular values become about 1, its directions stay."""
    tall = len(matrix) > matrix.shape[1]
    x = matrix.T if tall else matrix  # the products are of the shorter side
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x.T if tall else x
