"""Layers with a norm in training mode: what takes part, and that a wrong one has no speed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from convpool import registry
from convpool.testing import normalised
from convpool.testing.candidates import ParityError, best_plain, in_layout
from convpool.testing.cases import BATCH_NORM, by_name
from convpool.testing.normalised import PLAIN, NormInputs, NormThrough, check_norm_layer, make_norm_inputs, norm_calls
from convpool.testing.timing import Timing


def serves(name: str) -> bool:
    backend = registry.backend(name)
    return hasattr(backend, "batch_statistics") and not backend.unavailable()


SERVING = [name for name in registry.backend_names() if serves(name)]


@pytest.fixture
def inputs() -> NormInputs:
    return make_norm_inputs(BATCH_NORM[1])


def eager(*arguments: Any) -> Tensor:
    return PLAIN["eager"][0](*arguments)


@pytest.mark.parametrize("case", BATCH_NORM, ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_torchs_own_forms_are_right(case, name):
    layer, layout = PLAIN[name]
    parity = check_norm_layer(in_layout(make_norm_inputs(case), layout), layer)
    assert parity.ok, parity
    assert list(parity.error) == ["y", "mean", "variance", "dx", "dw", "dgamma", "dbeta"]


@pytest.mark.parametrize("backend", ["auto", *SERVING])
def test_ours_are_right(inputs, backend):
    layer = NormThrough(backend)
    assert len(norm_calls(inputs, layer, "nchw", dx=True)) == 1
    assert len(norm_calls(inputs, layer, "channels_last", dx=False)) == 1


def changed(place: int, factor: float) -> Any:
    """torch's layers with the gradient of one tensor (0 x, 1 weight, 3 gamma, 4 beta) times a factor."""

    def layer(*arguments: Any) -> Tensor:
        tensors = list(arguments)
        tensors[place] = tensors[place] * factor + tensors[place].detach() * (1 - factor)
        return eager(*tensors)

    return layer


def unmoved(*arguments: Any) -> Tensor:
    return eager(*arguments[:5], *(t.clone() for t in arguments[5:7]), arguments[7])


FAULTS = {
    "y": lambda *arguments: eager(*arguments) * 1.001,
    "mean": unmoved,
    "dx": changed(0, 1.001),
    "dw": changed(1, 0.999),
    "dgamma": changed(3, 1.001),
    "dbeta": changed(4, 0.0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_thousandth_is_seen(inputs, name):
    assert check_norm_layer(inputs, FAULTS[name]).error[name] > 1
    with pytest.raises(ParityError, match="normalised"):
        norm_calls(inputs, FAULTS[name], "nchw", dx=True)


def test_a_layer_under_running_statistics_is_seen(inputs):
    def frozen(x: Tensor, weight: Tensor, bias: Any, gamma: Tensor, beta: Tensor, *rest: Any) -> Tensor:
        return eager(x, weight, bias, gamma * 0.5, beta, *rest)

    assert not check_norm_layer(inputs, frozen).ok


def test_winners_that_rounding_decides_do_not_count():
    """Of equal pixels every position is the winner for somebody."""
    inputs = make_norm_inputs(BATCH_NORM[0])
    inputs = replace(inputs, x=torch.zeros_like(inputs.x).index_fill_(0, torch.tensor(0), 1.0))

    def last_wins(x: Tensor, *arguments: Any) -> Tensor:
        return eager(x.flip(2, 3), arguments[0].flip(2, 3), *arguments[1:]).flip(2, 3)

    assert check_norm_layer(inputs, last_wins).ok


def test_the_calls_update_the_buffers(inputs):
    """As in training: a form without this work would win by it."""
    for call in norm_calls(inputs, eager, "nchw", dx=False):
        before = [t.clone() for t in inputs.running]
        call()
        assert not any(torch.equal(old, new) for old, new in zip(before, inputs.running, strict=True))


def test_the_check_leaves_the_buffers(inputs):
    before = [t.clone() for t in inputs.running]
    check_norm_layer(inputs, eager)
    assert all(torch.equal(old, new) for old, new in zip(before, inputs.running, strict=True))


def test_who_computes_it():
    inputs = make_norm_inputs(BATCH_NORM[0].at_full_size())
    assert normalised.explained(inputs, "reference").plan == "reference"
    assert normalised.explained(inputs, "auto").backend == ("cpu" if "cpu" in SERVING else "torch")


def test_the_fastest_of_all_four_forms():
    seconds = {
        "eager": 3.0,
        "eager, channels_last": 4.0,
        "pool before ReLU": 1.0,
        "pool before ReLU, channels_last": 2.0,
    }
    found = {name: Timing(median, median, median, 7) for name, median in seconds.items()}
    assert set(found) == set(PLAIN)
    assert best_plain(found, PLAIN) == "pool before ReLU"
    assert best_plain(found) == "pool before ReLU, channels_last"


def test_the_cases_are_not_in_the_table_of_the_plain_op():
    for case in BATCH_NORM:
        with pytest.raises(KeyError):
            by_name(case.name)
