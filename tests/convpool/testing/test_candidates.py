"""What is timed of a layer: every form of it, and nothing that computes something else."""

import pytest

from convpool import registry
from convpool.testing import candidates
from convpool.testing.candidates import ParityError, Through
from convpool.testing.cases import by_name
from convpool.testing.parity import make_inputs


def test_layers_are_timed_in_every_form() -> None:
    timings = candidates.compare_layer(make_inputs(by_name("lenet5-1")), ["auto"], dx=False, seconds=0.001)
    assert list(timings) == [*candidates.PLAIN, "auto, nchw", "auto, channels_last"]
    assert all(0 < one.low <= one.median <= one.high and one.rounds >= 7 for one in timings.values())
    assert candidates.best_plain(timings) in candidates.PLAIN


def test_padding_on_one_side_only_is_handed_on() -> None:
    inputs = make_inputs(by_name("same-even"))
    assert candidates.explained(inputs, "reference").backend == "reference"
    assert candidates.layer_calls(inputs, Through("reference"), "nchw", dx=True, backward=False)


@pytest.mark.parametrize(
    ("bug", "backward"),
    [("value", True), ("value", False), ("rounding", True), ("rounding", False), ("gradient", True), ("winner", True)],
)
def test_no_calls_of_a_wrong_kernel(bug, backward, monkeypatch) -> None:
    """Ours is wrong in the value, a little everywhere as with too few digits, in dw alone, in the winners alone."""
    backend = registry.backend("reference")
    right_forward, right_backward = backend.forward, backend.backward

    def forward(*arguments):
        y, code = right_forward(*arguments)
        if bug == "value":
            y[0, 0] += 1
        if bug == "rounding" and not (y == y.round()).all():
            y *= 1 + 1e-4
        if bug == "winner" and len(code):
            code[0] = 0
        return y, code

    def gradients(*arguments):
        dx, dw, db = right_backward(*arguments)
        if bug == "gradient":
            dw[0, 0, 0, 0] += 1
        return dx, dw, db

    monkeypatch.setattr(backend, "forward", forward)
    monkeypatch.setattr(backend, "backward", gradients)
    inputs, wrong = make_inputs(by_name("lenet5-1")), Through("reference")
    with pytest.raises(ParityError, match=r"wrong result for x \(4, 1, 28, 28\), nchw"):
        candidates.layer_calls(inputs, wrong, "nchw", dx=False, backward=backward)
