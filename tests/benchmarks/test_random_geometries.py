"""The search in random calls: what it draws, that it finds nothing today, and that it finds what is planted."""

from pathlib import Path

import pytest

from benchmarks.random_geometries import STRATA, Call, outcomes, survey
from convpool import registry

FAULTY = Path(__file__).with_name("faulty_geometries.py")


def bad(backend: str, numbers: range) -> list[tuple[int, str]]:
    allowed = ("right",) if backend == "auto" else ("right", "refused")
    return [found for found in outcomes(backend, 0, numbers) if found[1] not in allowed]


@pytest.fixture(params=("auto", pytest.param("cpu", marks=pytest.mark.slow)))
def backend(request: pytest.FixtureRequest) -> str:
    missing = request.param == "cpu" and registry.backend("cpu").unavailable()
    if missing:
        pytest.skip(missing)
    return request.param


@pytest.mark.slow
def test_a_few(backend: str) -> None:
    assert bad(backend, range(3 * len(STRATA))) == []


@pytest.mark.slow
def test_many(backend: str) -> None:
    assert bad(backend, range(3 * len(STRATA), 3 * len(STRATA) + 1500)) == []


def test_strata_are_what_they_say() -> None:
    calls = [Call.draw(1, number) for number in range(20 * len(STRATA))]
    assert calls[:5] == [Call.draw(1, number) for number in range(5)]
    of = {name: [call.case.geometry for call in calls if call.stratum == name] for name in STRATA}
    assert all(len(drawn) == 20 for drawn in of.values())
    assert any(g.settings.groups == g.in_channels == g.out_channels for g in of["groups"])
    assert all(g.empty_windows for g in of["empty windows"])
    assert all(g.in_channels == 1 for g in of["one input channel"])
    assert any(g.conv_width == 1 and g.settings.stride[1] > 1 for g in of["one input channel"])
    assert all(g.reduction > 1500 for g in of["many products"])


@pytest.mark.slow
def test_planted_faults_are_reported_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert not survey("reference", 0, range(11), FAULTY)
    out = capsys.readouterr().out
    wrong, fatal = (list(STRATA)[number] for number in (5, 7))
    assert f"wrong: {wrong}: error over bound: y " in out
    assert f"crashed: {fatal}: the child ended with status -9" in out
    for number in (5, 7):
        assert f"python benchmarks/random_geometries.py --backend reference --seed 0 --only {number}\n" in out
    rows = {cells[0].strip(): cells[1:] for cells in (line.split("\t") for line in out.splitlines()) if len(cells) == 6}
    assert rows["all"] == ["11", "8", "1", "1", "1"]
    assert rows[wrong] == ["1", "0", "0", "1", "0"]
    assert rows[fatal] == ["1", "0", "0", "0", "1"]
