"""Every test here runs on poisoned memory; tests that take `backend` run once for each backend of this process.

Interpreted Triton kernels take from seconds to minutes a case. A few cases of the table are run with everything else;
the rest is marked `exhaustive` and run by those who change the kernels.
"""

from collections.abc import Iterator

import pytest
import torch

from convpool import planning

# One of each kind: direct, by channels, flattened, padded, dilated, and mixed with groups, strides and overlap.
_INTERPRETED_QUICKLY = ("cnn-1", "cnn-2", "lenet5-2", "batch-0", "same-even-dilated", "mixed-1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        quick = item.path.name == "test_parity.py" and str(parameters.get("case")) in _INTERPRETED_QUICKLY
        if parameters.get("backend") == "triton" and not quick:
            item.add_marker(pytest.mark.exhaustive)


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
