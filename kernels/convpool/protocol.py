"""What a backend is: the seam between the op and the kernels that compute it."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from convpool.geometry import Geometry

Needs: TypeAlias = tuple[bool, bool, bool]  # which of dx, dw, db are asked for

BAD_CODES = "backward needs its winners as the forward pass left them: a saved code names no position of its window"


class Use(NamedTuple):
    """What besides sizes and types decides how fast the plans of a call are, and so which one `auto` takes.

    Attributes:
        channels_last: whether that is x's memory format.
        training: whether gradients can be asked for.
        dx: whether x's is among them.
        threads: those of torch on the CPU.
        replayed: whether a CUDA graph records the call, so that launching it costs nothing.
        repeatable: whether the plan must not hang on what was timed: torch's deterministic algorithms are asked for.
        symbolic: whether the sizes may stand for others, as while a compiler traces: comparing them then makes a guard.
    """

    channels_last: bool = False
    training: bool = False
    dx: bool = False
    threads: int = 1
    replayed: bool = False
    repeatable: bool = False
    symbolic: bool = False


ORDINARY = Use()


def check_word(plan: str) -> None:
    """Refuse a plan that is none of the op's own backends': it may come from a program that another version saved.

    Raises:
        ValueError: names the plan and what is allowed.
    """
    if plan not in ("fused", "split"):
        raise ValueError(f"plan must be fused or split, got {plan!r}")


@dataclass(frozen=True)
class Plan:
    """How one call is computed, and why; `str(plan)` is the sentence that `explain` shows.

    Made once, before the forward pass; its name `call` then goes with the call, through backward, compiler and vmap.

    Attributes:
        backend: who computes, "torch" being torch's own layers.
        plan: which of the backend's ways; "fused" and "split" are those of the op's own backends.
        keeps_codes: between forward and backward only x, weight and one byte per pooled output stay alive.
        profitable: whether `auto` should take it, by the backend's own written rule; one that was named serves anyway.
        profitable_replayed: whether it should where a CUDA graph replays the call, and so launches it.
        kernels: the kernels that run, in their order, where the tensors' strides were known: in `explain`'s answer.
        measured: whether it is taken because it was the fastest (see `choices`), and not by a rule.
    """

    backend: str
    plan: str
    reason: str
    keeps_codes: bool = True
    profitable: bool = True
    profitable_replayed: bool = False
    kernels: tuple[str, ...] = ()
    measured: bool = False

    @property
    def is_torch(self) -> bool:
        """Whether torch's own layers compute, under torch's own autograd."""
        return self.backend == "torch"

    @property
    def call(self) -> str:
        """What the operators take: "triton/fused"."""
        return f"{self.backend}/{self.plan}"

    def __str__(self) -> str:
        kept = "keeps one byte per pooled output" if self.keeps_codes else "keeps what torch's layers keep"
        kernels = f", {' + '.join(self.kernels)}" if self.kernels else ""
        return f"{self.backend}, {self.plan} plan{kernels}: {self.reason} ({kept})"


class Moments(NamedTuple):
    """Mean and scatter of the patches of x: the K values that a conv position reads, in the order of `weight[0]`.

    Of all positions of the conv output, whether a pool window looks at them or not. Float64; K is `Geometry.reduction`.
    """

    mean: Tensor  # (groups, K)
    scatter: Tensor  # (groups, K, K): sum over the positions of (patch - mean)(patch - mean)^T


class Bound(Protocol):
    """A backend's plan for calls that repeat each other: their tensors differ in nothing but their numbers."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, with_code: bool) -> tuple[Tensor, Tensor]:
        """As `Backend.forward`."""
        ...

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Backend.backward`; dy and code always have the strides of the forward pass's y."""
        ...


class Backend(Protocol):
    """Kernels behind one name. Every tensor is batched (4-d); shapes are those of `Geometry`.

    `plan` is the word of the plan that `serves` made. Under vmap the call has more images or more groups than what was
    planned; whoever cannot compute that raises RuntimeError.

    A backend may have more methods. With `bind(x, weight, bias, geometry, plan) -> Bound` calls that repeat each other
    spend less in Python. With `plans(geometry, dtype) -> Sequence[str]` it names all plans that it has for a call which
    it serves, for those who measure or name one. With `batch_statistics(geometry, plan, dx) -> Plan | str` (what
    becomes of the plan that `serves` made, where the conv output is normalised by its own statistics and x has a
    gradient or not) and `patch_moments(x, geometry) -> Moments` it serves `conv_bn_relu_max_pool2d` in training mode.
    """

    def unavailable(self) -> str | None:
        """Why the backend cannot run in this process, or None."""
        ...

    def serves(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use = ORDINARY) -> Plan | str:
        """The plan for a call, or in words why there is none. Must not depend on anything but its arguments."""
        ...

    def kernels(self, x: Tensor, weight: Tensor, geometry: Geometry, plan: str, needs: Needs) -> tuple[str, ...]:
        """The names of what a forward pass on tensors of these strides runs, and then a backward pass with `needs`."""
        ...

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, plan: str, with_code: bool
    ) -> tuple[Tensor, Tensor]:
        """y and its winners, as `layout.new_output` and `new_code` allocate them; x and weight may have any strides."""
        ...

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, plan: str, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dx, dw, db, as `layout.new_gradients` allocates them; dy has code's strides; x is given if dw is needed.

        The tensors' sizes, types and memory are checked (`checks`), what stands in code is not: a code that names
        no conv output raises RuntimeError(BAD_CODES) on CPUs, and counts as dead on GPUs, where to ask is to wait.
        """
        ...
