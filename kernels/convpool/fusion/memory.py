"""How much autograd keeps between forward and backward."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def kept_bytes(function: Callable[..., Any], *inputs: Any, ignore: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd saves for the backward of `function(*inputs)`, each storage counted once.

    The storages of the inputs and of the tensors in `ignore` (parameters, say) exist anyway and are not counted.
    """
    known = {_storage(t) for t in (*inputs, *ignore) if isinstance(t, Tensor)}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if _storage(t) not in known:
            kept[_storage(t)] = t.untyped_storage().nbytes()
        return t

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = function(*inputs)  # alive until the sum is done, or storages would be freed and used again
    total = sum(kept.values())
    del output
    return total


def _storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()
