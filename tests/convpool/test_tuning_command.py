"""`python -m convpool.tune`: what it says, and what it refuses in one line with exit code 2."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import convpool
from convpool import choices
from convpool.tuning_command import main
from tests.convpool.tables import CPU, OTHER, table

ROOT = Path(__file__).parents[2]
FACTORY = f"{__name__}:small"
TUNE = [FACTORY, "--device", "cpu", "--example", "2,3,8,8", "--threads", "1", "--seconds"]


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))


def broken() -> nn.Module:
    raise OSError("no weights\nhere")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CONVPOOL_CACHE", str(tmp_path))
    torch.use_deterministic_algorithms(False)
    threads = torch.get_num_threads()
    choices.forget()
    yield
    torch.set_num_threads(threads)
    choices.forget()


def test_a_process_tunes_and_another_one_follows() -> None:
    """By the real clock, which may find whatever it finds: the plan tells that it was measured."""
    x, conv = torch.randn(2, 3, 8, 8), small()[0]
    torch.set_num_threads(1)
    with torch.no_grad():
        assert not convpool.explain(x, conv.weight, conv.bias).measured
        environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
        command = [sys.executable, "-m", "convpool.tune", *TUNE, "1"]
        done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
        choices.forget()
        assert convpool.explain(x, conv.weight, conv.bias).measured
    said = done.stdout.splitlines()
    assert said[-2].startswith("tuned 1 call in ")
    assert said[-1] == f"stored in {choices.file_of(CPU)}"


def test_mode_memory_format_and_threads_are_those_asked_for() -> None:
    assert main([*TUNE, "1", "--training", "--channels-last"]) == 0
    (call,) = choices.in_force(CPU).by_call
    assert call.endswith(" channels_last training threads=1")


def test_show_and_clear(capsys: pytest.CaptureFixture[str]) -> None:
    path = choices.keep(CPU, table())
    for arguments, last in (
        (["--show"], f"1 choice in {path}"),
        (["--clear"], f"removed {path}"),
        (["--clear"], "nothing to remove"),
        (["--show"], f"0 choices in {path}"),
    ):
        assert main([*arguments, "--device", "cpu"]) == 0
        said = capsys.readouterr().out
        assert said.splitlines()[-1] == last
        assert (f": {OTHER} ({OTHER} 0.41 ms, cpu/fused 0.63 ms; 2026-11-27)" in said) is last.startswith("1 ")


def test_show_says_that_the_cache_is_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CONVPOOL_CACHE", "off")
    assert main(["--show", "--device", "cpu"]) == 0
    assert "CONVPOOL_CACHE is off" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of MODULE:FACTORY, --show and --clear"),
        (["--show", "--clear"], "give one of"),
        ([FACTORY], "--example is needed"),
        (["small", "--example", "2,3,8,8"], "must be MODULE:FACTORY, got 'small'"),
        (["no.such:model", "--example", "2,3,8,8"], "no.such:model: ModuleNotFoundError"),
        ([f"{__name__}:none", "--example", "2,3,8,8"], "AttributeError"),
        ([f"{__name__}:broken", "--example", "2,3,8,8"], "broken: OSError: no weights"),
        (["builtins:dict", "--example", "2,3,8,8"], "builtins:dict must make an nn.Module, got dict"),
        ([FACTORY, "--example", "2,1,8,8"], "it cannot be tuned: ValueError: x has 1 channels"),
        ([FACTORY, "--example", "2,1,8,x"], "--example: must be of whole numbers from 1, got 'x'"),
        ([FACTORY, "--example", "1,8,8", "--channels-last"], "needs an --example of four sizes, got 3"),
        ([*TUNE, "0"], "--seconds: must be more than 0, got '0'"),
        ([*TUNE, "nan"], "--seconds: must be more than 0, got 'nan'"),
        ([*TUNE, "1", "--threads", "0"], "--threads: must be of whole numbers from 1, got '0'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    device = [] if "--device" in arguments else ["--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *device])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in error
    assert error.startswith("python -m convpool.tune: ")
    assert error.count("\n") == 1
