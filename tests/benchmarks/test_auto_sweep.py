"""The sweep of `auto`: what fails and what does not, and that it goes on where it was stopped. No clock is read."""

import json
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from benchmarks import auto_sweep
from benchmarks.auto_sweep import Row


def row(*ratios: float, eager: float = 1e-3, added: float = 0.0, training: bool = False) -> Row:
    return Row("a layer", training, 1, eager, ratios, (added,) * len(ratios), 1.0, "cpu/fused")


@pytest.mark.parametrize(
    ("found", "fails"),
    [
        (row(2.0), False),
        (row(0.94, 0.96), False),
        (row(0.94, 0.9, 0.949), True),
        (row(0.94, 0.9, 0.95), False),
        (row(0.4, 0.4, 0.4, eager=20e-6, added=14e-6), False),
        (row(0.4, 0.4, 0.4, eager=20e-6, added=16e-6), True),
    ],
)
def test_three_fresh_measurements_fail_together(found: Row, fails: bool) -> None:
    assert found.failed(0.95) == fails
    lines, failed = auto_sweep.summary([found, row(1.5)], 0.95)
    assert failed == fails
    assert any(line.startswith("FAILED a layer") for line in lines) == fails


def test_layers_are_drawn_from_the_seed() -> None:
    first, again, other = (list(islice(auto_sweep.layers(40, seed), 40)) for seed in (0, 0, 1))
    assert first == again != other
    cases = [layer.case for layer in first]
    assert {layer.layout for layer in first} == {"nchw", "channels_last"}
    assert any(case.batch & (case.batch - 1) for case in cases)
    assert {case.kernel[0] for case in cases} <= {1, 2, 3, 4, 5, 6, 7}
    assert len({auto_sweep._key(layer, True, 1) for layer in first}) == 40


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stands in for races: each one ends with the next of these ratios, with 2 where there is none."""
    ratios: list[float] = []

    class Race:
        def __init__(self, calls: dict[str, object], _: torch.device) -> None:
            self.calls = calls

        def run(self, _: float) -> dict[str, SimpleNamespace]:
            ratio = ratios.pop(0) if ratios else 2.0
            return {name: SimpleNamespace(median=1e-3 / ratio if name == "auto" else 1e-3) for name in self.calls}

    monkeypatch.setattr(auto_sweep, "Race", Race)
    monkeypatch.setattr(auto_sweep, "MOST_PRODUCTS", 1e5)
    monkeypatch.setattr(auto_sweep.machine, "keep_freed_memory", lambda: None)
    return ratios


def sweep(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["auto_sweep", "--threads", "1", "--seed", "3", *arguments])
    return auto_sweep.main()


def test_it_goes_on_where_it_was_stopped(races, monkeypatch, tmp_path, capsys) -> None:
    out = tmp_path / "rows.jsonl"
    threads = torch.get_num_threads()
    try:
        races += [0.9, 1.1, 0.9, 0.8, 0.7]  # the first row recovers, the second one does not
        assert sweep(monkeypatch, "--layers", "2", "--out", str(out)) == 1
        assert "1 of 4 rows failed (limit 0.95)" in capsys.readouterr().out
        before = out.read_text().splitlines()
        assert [json.loads(line)["ratios"] for line in before[:2]] == [[0.9, 1.1], [0.9, 0.8, 0.7]]
        assert sweep(monkeypatch, "--layers", "3", "--out", str(out)) == 1
    finally:
        torch.set_num_threads(threads)
    assert out.read_text().splitlines()[:4] == before
    assert len(out.read_text().splitlines()) == 6
