"""How speed is measured: who takes turns with whom, and that a wrong result has none."""

import subprocess
import sys
import time

import pytest
import torch

from convpool import planning
from convpool.testing import roofline, timing
from convpool.testing.cases import by_name
from convpool.testing.parity import make_inputs
from convpool.testing.timing import ParityError, Race, Through

CPU = torch.device("cpu")


def test_all_take_turns_and_nobody_always_follows_the_same() -> None:
    seen: list[str] = []
    race = Race({name: [lambda name=name: (seen.append(name), time.sleep(3e-3))] for name in "abc"}, CPU)
    seen.clear()
    timings = race.run(0, least=12)
    rounds = ["".join(seen[i : i + 3]) for i in range(0, len(seen), 3)]
    assert all(sorted(turns) == ["a", "b", "c"] for turns in rounds)
    followed = {name: {seen[i - 1] for i in range(1, len(seen)) if seen[i] == name} for name in "abc"}
    assert all(len(neighbours) > 1 for neighbours in followed.values())
    assert [one.rounds for one in timings.values()] == [12, 12, 12]


def test_a_turn_is_many_calls_of_what_is_quick() -> None:
    race = Race({"quick": [lambda: None], "slow": [lambda: time.sleep(5e-3)]}, CPU)
    assert race.calls("quick") > 100
    assert race.calls("slow") == 1
    assert race.foretold("quick") < 1e-4 < 5e-3 <= race.foretold("slow")
    assert race.rounds(1.0) <= 1 / 5e-3
    assert race.rounds(0.0, least=4) == 4


def test_a_latecomer_starts_the_race_again() -> None:
    race = Race({"a": [lambda: None]}, CPU)
    race.run(0, least=2)
    race.add("b", [lambda: None])
    assert race.samples == {"a": [], "b": []}


def test_layers_are_timed_in_every_form() -> None:
    timings = timing.compare_layer(make_inputs(by_name("lenet5-1")), ["auto"], dx=False, seconds=0.001)
    assert list(timings) == [*timing.PLAIN, "auto, nchw", "auto, channels_last"]
    assert all(0 < one.low <= one.median <= one.high and one.rounds >= 7 for one in timings.values())
    assert timing.best_plain(timings) in timing.PLAIN


def test_padding_on_one_side_only_is_handed_on() -> None:
    inputs = make_inputs(by_name("same-even"))
    assert timing.explained(inputs, "reference").backend == "reference"
    assert timing.layer_calls(inputs, Through("reference"), "nchw", dx=True, backward=False)


@pytest.mark.parametrize(
    ("bug", "backward"),
    [("value", True), ("value", False), ("rounding", True), ("rounding", False), ("gradient", True), ("winner", True)],
)
def test_no_calls_of_a_wrong_kernel(bug, backward, monkeypatch) -> None:
    """Ours is wrong in the value, a little everywhere as with too few digits, in dw alone, in the winners alone."""
    backend = planning.backend("reference")
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
        timing.layer_calls(inputs, wrong, "nchw", dx=False, backward=backward)


def test_the_necessary_work_of_a_layer() -> None:
    geometry = by_name("lenet5-1").geometry  # (4, 1, 28, 28) -> 6 k5 p2, pooled to 14x14
    forward = roofline.work(geometry, torch.float32, dx=False, backward=False)
    x, y, parameters = 4 * 784, 4 * 6 * 196, 6 * 26
    assert forward == roofline.Work(2 * 25 * 4 * 6 * 784, 4 * (x + y + parameters))
    training = roofline.work(geometry, torch.float32, dx=False, backward=True)
    assert training.flops - forward.flops == 2 * 25 * y
    assert training.bytes - forward.bytes == 2 * y + 4 * (y + x + parameters)  # codes twice; dy, x; dw and db
    both = roofline.work(geometry, torch.float32, dx=True, backward=True)
    assert both.flops - training.flops == 2 * 25 * y
    assert both.bytes - training.bytes == 4 * (x + parameters)


def test_the_bound_is_the_slower_of_the_two() -> None:
    peaks = roofline.Peaks(flops=100.0, bandwidth=10.0)
    assert peaks.bound(roofline.Work(1000, 10)) == 10
    assert peaks.bound(roofline.Work(10, 1000)) == 100


def test_peaks_are_measured_once() -> None:
    first = roofline.peak_bandwidth(CPU, 60_000)
    assert first == roofline.peak_bandwidth(CPU, 50_000)  # within the same power of two
    assert 1e8 < first < 1e13


@pytest.mark.parametrize("before", ["none", pytest.param("tf32", marks=pytest.mark.slow)])
def test_pinned_precision_can_be_read_by_everyone(before) -> None:
    """In a process of its own: torch's flags are the process', and it may have asked for TF32 everywhere."""
    script = f"""
import torch
from convpool.testing.timing import pin_precision
torch.backends.fp32_precision = {before!r}
pin_precision(torch.device("cuda"))
cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
assert (cudnn.allow_tf32, matmul.allow_tf32, torch.get_float32_matmul_precision()) == (False, False, "highest")
assert [one.fp32_precision for one in (cudnn.conv, cudnn.rnn, matmul)] == ["ieee"] * 3
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
