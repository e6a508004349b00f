"""Calls that were met before: a training step makes the same few again, and what was decided for one is kept.

Whether tensors are such as those of a known call is one question to torch (`torch_private.alike`), answered in a
microsecond; to check the arguments, ask for a plan and look for whatever must see the operators takes ten.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import add, is_, le, mul
from typing import Any, TypeAlias

import torch
from torch import Tensor

from convpool import torch_private
from convpool.checks import extent
from convpool.geometry import Geometry
from convpool.planning import requested_backend
from convpool.protocol import Backend, Bound, Needs
from convpool.registry import running, when_backends_change

Tensors: TypeAlias = tuple[Tensor, ...]
Compute: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of x, weight and bias
Mode: TypeAlias = tuple[str, bool, int, bool]  # see `_mode`

MOST_SHAPES = 4096
MOST_CALLS = 16  # for one pair of shapes


class Kind:
    """Tensors that are alike in all but their numbers: type, dtype, device, sizes, strides, requires_grad, and what is
    switched on that torch's dispatcher asks; and whose memory is there."""

    def __init__(self, alike: Callable[..., bool], tensors: Tensors) -> None:
        self._alike = alike
        self._itemsizes = tuple(t.itemsize for t in tensors)
        self._sizes = tuple(extent(t) * t.itemsize for t in tensors)  # in bytes
        self._offsets = tuple(map(_storage_offset, tensors))
        self._ends = self._ends_at(self._offsets)

    @staticmethod
    def of(tensors: Tensors) -> "Kind | None":
        """Their kind, if torch can tell it."""
        alike = torch_private.alike(tensors)
        return None if alike is None else Kind(alike, tensors)

    def looks(self, tensors: Tensors) -> bool:
        """Whether these are of this kind, but for their memory."""
        return len(tensors) == len(self._sizes) and self._alike(*tensors)

    def fits(self, tensors: Tensors) -> bool:
        """Whether these are of this kind."""
        if not self.looks(tensors):
            return False
        offsets = tuple(map(_storage_offset, tensors))
        ends = self._ends if offsets == self._offsets else self._ends_at(offsets)
        return all(map(le, ends, map(_nbytes, map(_untyped_storage, tensors))))

    def _ends_at(self, offsets: tuple[Any, ...]) -> tuple[int, ...]:
        """How many bytes each tensor's storage must hold."""
        return tuple(map(add, self._sizes, map(mul, offsets, self._itemsizes)))


# Loops in C: this is asked at every call.
_storage_offset, _untyped_storage = Tensor.storage_offset, Tensor.untyped_storage
_nbytes = torch.UntypedStorage.nbytes


class Call:
    """A call on batched tensors, as it was decided: what computes it, `forward` and `backward` (`protocol.Bound`)."""

    def __init__(self, geometry: Geometry, name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """`name` is that of the plan, `Plan.call`: "cpu/fused"."""
        self.geometry, self.name = geometry, name
        self.differentiable = any(t is not None and t.requires_grad for t in (x, weight, bias))
        backend, word = running(name)
        bind = getattr(backend, "bind", None)
        bound: Bound = bind(x, weight, bias, geometry, word) if bind else _Unbound(backend, geometry, word)
        self.forward, self.backward = bound.forward, bound.backward
        self._kind: Kind | None = None  # of a backward pass's dy, code, weight and x

    def keep_backward(self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor) -> None:
        """Know tensors that are like these again: the backend took them as they are."""
        if self._kind is None:
            self._kind = Kind.of((dy, code, weight) if x is None else (dy, code, weight, x))

    def repeats_backward(self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor) -> bool:
        """Whether the tensors are like those kept, so that nothing about them is left to check."""
        if self._kind is None:
            return False
        tensors = (dy, code, weight) if x is None else (dy, code, weight, x)
        return torch_private.may_be_known() and self._kind.fits(tensors)


@dataclass(frozen=True)
class _Unbound:
    """A `Bound` of a backend that has none of its own."""

    backend: Backend
    geometry: Geometry
    plan: str

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, with_code: bool) -> tuple[Tensor, Tensor]:
        return self.backend.forward(x, weight, bias, self.geometry, self.plan, with_code)

    def backward(
        self, dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, needs: Needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.backend.backward(dy, code, x, weight, self.geometry, self.plan, needs)


_UNCHANGING = {int, bool, str, tuple, type(None)}
_known: dict[tuple[torch.Size, torch.Size], list[tuple[Mode, tuple[Any, ...], Callable[[Tensors], bool], Compute]]] = {}
forget = _known.clear  # all of them
when_backends_change(forget)


def _mode() -> Mode:
    """What the plan of a call hangs on and its tensors do not tell: `protocol.Use`, and who was asked for."""
    return (
        requested_backend(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )


def find(tensors: Tensors, options: tuple[Any, ...]) -> Compute | None:
    """What computes the call that these repeat.

    Args:
        tensors: x, weight and, if there is one, bias.
        options: what else the op is given. They are compared by identity: 1 is a stride, and True is not.
    """
    if not torch_private.may_be_known():
        return None
    try:
        calls = _known.get((tensors[0].shape, tensors[1].shape))
    except (AttributeError, TypeError):  # no tensors at all, or symbolic sizes, which have no hash
        return None
    if calls is None:
        return None
    mode = _mode()
    for known_mode, known_options, fits, compute in calls:
        if known_mode == mode and all(map(is_, known_options, options)) and fits(tensors):
            return compute
    return None


def keep(compute: Compute, tensors: Tensors, options: tuple[Any, ...], *, by_address: bool) -> None:
    """Let `find` find what computes a call on which nothing was cast and which nothing had to see.

    Not with options that can change and stay the same object, as a list can. `by_address`: memory is read at its
    address, so that it must be seen to be there; torch's own layers see to that themselves.
    """
    kind = Kind.of(tensors) if _UNCHANGING.issuperset(map(type, options)) else None
    if kind is None:
        return
    if len(_known) >= MOST_SHAPES:
        _known.clear()
    calls = _known.setdefault((tensors[0].shape, tensors[1].shape), [])
    calls.insert(0, (_mode(), options, kind.fits if by_address else kind.looks, compute))
    del calls[MOST_CALLS:]
