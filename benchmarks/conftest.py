"""The options of `pytest benchmarks/`."""

import pytest

from convpool.testing.machine import keep_freed_memory
from mnistfast.measure.suite import Effort


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="the whole table of shapes, every form, max-autotune")
    parser.addoption(
        "--seconds", type=float, default=Effort.seconds, help="of measuring a workload, all forms together"
    )
    parser.addoption("--no-compile", action="store_true", help="leave torch.compile out")


@pytest.fixture(scope="session", autouse=True)
def allocator() -> None:
    keep_freed_memory()
