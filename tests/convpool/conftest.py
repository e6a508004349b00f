"""Every test here runs on poisoned memory; tests that take `backend` run once for each backend of this process."""

from collections.abc import Iterator

import pytest
import torch

from convpool import planning


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch fills what it allocates with NaN (255 in codes), so an element that nobody wrote fails the test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=planning.backend_names())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    missing = planning.backend(request.param).unavailable()
    if missing:
        pytest.skip(f"backend {request.param}: {missing}")
    with planning.use_backend(request.param):
        yield request.param
