"""Every test here runs on poisoned memory; tests that take `backend` run once for each backend of this process.

Interpreted Triton kernels take from a second to minutes a test. A few of each kind run with everything else; the rest
is marked `slow`, and `exhaustive` where a test takes minutes.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
import torch

from convpool import planning

# Of tests run by Triton's interpreter, the quick ones: all of a function, or those of some cases. The cases are one of
# each kind: direct, by channels, flattened, padded, dilated, with padded pools and with overlapping ones.
_QUICK: dict[str, tuple[str, ...] | None] = {
    "test_float32": (
        "cnn-1",
        "cnn-2",
        "lenet5-2",
        "batch-0",
        "batch-1",
        "same-even-dilated",
        "pool-padded",
        "pool-overlap",
    ),
    "test_other_dtypes": ("same-even-dilated", "batch-0"),
    "test_repeats_are_bit_identical": ("cnn-2", "batch-0"),
    "test_one_window": None,
    "test_bias_counts_before_the_comparison": None,
    "test_pool_padding_never_wins": None,
    "test_overlapping_windows_add_their_gradients": None,
    "test_empty_batch": None,
    "test_autocast": None,
}
_MINUTES = (
    "test_nan_and_infinite_inputs_give_torchs_values",  # sums that are not finite are formed again winner by winner
    "test_dead_neighbours_of_an_infinity_contribute_nothing",
    "test_gradgradcheck",
    "test_bad_codes",  # gpu/test_kernels.py has a few
    "test_what_goes_back_into_a_dead_window_is_lost",
    "test_grad_scaler_and_anomaly_detection",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if parameters.get("requested") in ("cpu", "reference"):  # `auto` takes the one; the other is slow itself
            item.add_marker(pytest.mark.slow)
        if "triton" in (parameters.get("backend"), parameters.get("requested")):
            cases = _QUICK.get(item.originalname, ())
            if item.originalname in _MINUTES or "requested" in parameters:  # hundreds of calls
                item.add_marker(pytest.mark.exhaustive)
            elif cases is not None and str(parameters.get("case", parameters.get("name"))) not in cases:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch fills what it allocates with NaN (255 in codes), so an element that nobody wrote fails the test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=planning.backend_names())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with _backend(request.param):
        yield request.param


@pytest.fixture(params=["auto", *planning.backend_names()])
def requested(request: pytest.FixtureRequest) -> Iterator[str]:
    """What a user can ask for: "auto", or a backend by name."""
    with _backend(request.param):
        yield request.param


def _backend(name: str) -> AbstractContextManager[None]:
    missing = None if name == "auto" else planning.backend(name).unavailable()
    if missing:
        pytest.skip(f"backend {name}: {missing}")
    return planning.use_backend(name)
