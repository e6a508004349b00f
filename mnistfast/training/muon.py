"""Muon: the update of a convolution's kernel is the orthogonal matrix nearest to its momentum; the rest is Adam's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

# Newton-Schulz iteration of degree five with the coefficients of Jordan et al. 2024 ("Muon"), chosen to raise small
# singular values fast: from 1 / 50 of the norm on they come out between 0.68 and 1.21 after three rounds, which
# trains as well here as the usual five.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 3
# Entries of the update have this mean square root, as Adam's do, so that one learning rate suits both (Liu et al. 2025,
# "Muon is scalable for LLM training", equation 4).
_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Muon for kernels over several channels, as matrices (C_out, C_in * K * K); AdamW for all other parameters.

    Kernels over one channel and matrices stay with Adam: they are a network's first and last layers, whose directions
    are not alike (Jordan et al. 2024).
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        """Prepares an optimiser.

        Args:
            params: parameters, or groups of them, float32.
            lr: learning rate of both kinds.
            betas: Adam's averaging factors.
            momentum: factor of Muon's averaged gradient, used with Nesterov's look ahead.
            weight_decay: decoupled, of both kinds.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": weight_decay})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned, whatever device that was on.

        torch sends the count of steps to the parameter's device only where the saved group says that Adam is fused, as
        it always is here.
        """
        groups = [{**group, "fused": True} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes one step with the gradients that are there. A closure is not taken."""
        for group in self.param_groups:
            learnt = [(p, p.grad) for p in group["params"] if p.grad is not None]
            for p, gradient in learnt:
                if _is_kernel(p):
                    self._step_kernel(p, gradient, group)
            self._step_rest([pair for pair in learnt if not _is_kernel(pair[0])], group)

    def _step_kernel(self, kernel: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[kernel]
        if not state:
            state["average"] = torch.zeros_like(kernel)
        average = state["average"]
        average.lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(average, group["momentum"])
        update = orthogonalised(ahead.flatten(1))
        kernel.mul_(1 - group["lr"] * group["weight_decay"])
        kernel.add_(update.view_as(kernel), alpha=-group["lr"] * _RMS * max(update.shape) ** 0.5)

    def _step_rest(self, rest: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        states = [self.state[p] for p, _ in rest]
        for (p, _), state in zip(rest, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), device=p.device)
                state["average"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
        adam(
            [p for p, _ in rest],
            [gradient for _, gradient in rest],
            [state["average"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            has_complex=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
            decoupled_weight_decay=True,
        )


def _is_kernel(parameter: Tensor) -> bool:
    return parameter.dim() == 4 and parameter.shape[1] > 1


def orthogonalised(matrix: Tensor) -> Tensor:
    """Returns about U V^T of `matrix` = U S V^T (M, N): the singular values become about 1, its directions stay."""
    tall = len(matrix) > matrix.shape[1]
    x = matrix.T if tall else matrix  # the products are of the shorter side
    x = x / (x.norm() + 1e-7)
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return x.T if tall else x
