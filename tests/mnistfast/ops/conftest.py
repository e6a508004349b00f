"""The operations both ways, and memory in which a step too far shows."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from convpool.gpu.backend import INTERPRETED
from mnistfast.ops.placement import standing_for_gpus

_BESIDE = 4


@pytest.fixture(params=["torch", pytest.param("triton", marks=pytest.mark.triton)])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Makes the operations call torch, or Triton's interpreter, in which every address lies in a tensor that was given.

    What torch allocates is full of NaN: what nobody wrote shows.
    """
    torch.use_deterministic_algorithms(True)
    if request.param == "torch":
        yield "torch"
    elif not INTERPRETED:
        pytest.skip("looks into Triton's interpreter, which this process does not run")
    else:
        from tests.convpool.gpu.test_kernels import guarded

        with standing_for_gpus("cpu"), guarded():
            yield "triton"
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def inside() -> Iterator[Callable[[Tensor], Tensor]]:
    """Returns what puts a tensor into a larger one; what lies beside it must be the same after the test."""
    kept: list[Tensor] = []

    def put(values: Tensor) -> Tensor:
        whole = torch.full((values.numel() + 2 * _BESIDE,), -77, dtype=values.dtype)
        kept.append(whole)
        part = whole[_BESIDE:-_BESIDE].as_strided(values.shape, values.stride())
        return part.copy_(values)

    yield put
    for whole in kept:
        beside = torch.cat([whole[:_BESIDE], whole[-_BESIDE:]])
        assert torch.equal(beside, torch.full_like(beside, -77))
