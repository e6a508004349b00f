"""Muon: the update of a convolution's kernel is the orthogonal matrix nearest to its momentum; the rest is Adam's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from mnistfast.ops.orthogonal import step_kernel


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
            lr: learning rate of both kinds. A group's may be a tensor () on the parameters' device, read at each step.
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
        lr = torch.as_tensor(group["lr"], dtype=torch.float64 if kernel.is_cpu else None)
        momentum, decay = group["momentum"], group["weight_decay"]
        step_kernel(kernel, gradient, state["average"], lr, momentum=momentum, weight_decay=decay)

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
