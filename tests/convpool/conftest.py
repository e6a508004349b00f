"""Every test here runs on poisoned memory; tests that take `backend` run once for each backend of this process.

Interpreted Triton kernels take from a second to minutes a test, so each of these tests is marked `slow`, unless it has
a mark of its own: `quick_interpreted` runs the cases that it names with everything else (all where it names none),
`minutes_interpreted` makes the test `exhaustive`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
import torch

from convpool import planning, registry
from convpool.testing.cases import by_name


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if parameters.get("requested") in ("cpu", "reference"):  # `auto` takes the one; the other is slow itself
            item.add_marker(pytest.mark.slow)
        if "triton" in (parameters.get("backend"), parameters.get("requested")):
            item.add_marker(pytest.mark.triton)
            if "requested" in parameters or item.get_closest_marker("minutes_interpreted"):  # hundreds of calls
                item.add_marker(pytest.mark.exhaustive)
            elif not _quick(item, str(parameters.get("case", parameters.get("name")))):
                item.add_marker(pytest.mark.slow)


def _quick(item: pytest.Item, case: str) -> bool:
    """Whether the test's mark lets it run with everything else: all that it does, or this case of it.

    Raises:
        KeyError: the mark names a case that is not in the table.
    """
    mark = item.get_closest_marker("quick_interpreted")
    return mark is not None and (not mark.args or case in {by_name(name).name for name in mark.args})


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch fills what it allocates with NaN (255 in codes), so an element that nobody wrote fails the test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Thousands of small operations by torch: where other processes compute too, threads wait longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=registry.backend_names())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with _backend(request.param):
        yield request.param


@pytest.fixture(params=["auto", *registry.backend_names()])
def requested(request: pytest.FixtureRequest) -> Iterator[str]:
    """What a user can ask for: "auto", or a backend by name."""
    with _backend(request.param):
        yield request.param


def _backend(name: str) -> AbstractContextManager[None]:
    missing = None if name == "auto" else registry.backend(name).unavailable()
    if missing:
        pytest.skip(f"backend {name}: {missing}")
    return planning.use_backend(name)
