"""`mnistfast <command>`."""

import runpy
import sys
import tomllib
from pathlib import Path

import pytest

from mnistfast import __main__, __version__


def test_help_and_nothing(capsys):
    assert __main__.main(["--help"]) == 0
    assert __main__.main([]) == 2
    assert capsys.readouterr().out.count("train a model") == 2


def test_version(capsys):
    for words in (["--version"], ["train", "--version"]):
        assert __main__.main(words) == 0
        assert capsys.readouterr().out == f"mnistfast {__version__}\n"
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == __version__


def test_hands_on(capsys):
    assert __main__.main(["train", "--lr", "0"]) == 2
    assert __main__.main(["evaluate", "nowhere"]) == 4
    assert "no checkpoint at nowhere" in capsys.readouterr().err


def test_unknown_command(capsys):
    assert __main__.main(["trian"]) == 2
    assert "unknown command 'trian' (did you mean 'train'?)" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["mnistfast.__main__", "mnistfast.train", "mnistfast.evaluate", "mnistfast.bench"])
def test_as_a_module(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ending:
        runpy.run_module(module, run_name="__main__")
    assert ending.value.code == 0
    assert "usage: mnistfast" in capsys.readouterr().out
