"""A live line for a terminal, plain lines for anything else."""

import sys
import time

import pytest

from mnistfast.report.screen import Screen, epoch_line

RECORD = {"epoch": 2, "loss": 0.5, "accuracy": 0.9, "val_loss": 0.25, "val_accuracy": 0.95, "images_per_s": 12345}
LINE = "epoch 2/3: loss 0.5000, accuracy 90.00 %; validation loss 0.2500, accuracy 95.00 %; 12,345 images/s"


def work(screen):
    with screen.progress(3, 100, 100) as progress:
        progress.step(150, 0.6, 0.7)
        time.sleep(0.11)  # tqdm draws ten times a second
        progress.step(290, 0.5, 0.75)
        progress.epoch(RECORD)


def test_epoch_line():
    assert epoch_line(RECORD, 3) == LINE
    assert "validation" not in epoch_line({key: RECORD[key] for key in RECORD if "val" not in key}, 3)


def test_pipe(capsys):
    work(Screen(quiet=False))
    assert capsys.readouterr().out == LINE + "\n"


def test_terminal(capsys, monkeypatch):
    log = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("mnistfast.report.screen.tqdm.monitor_interval", 0)  # no thread of tqdm's
    screen = Screen(quiet=False)
    screen.log = log.append
    work(screen)
    out = capsys.readouterr().out
    assert "epoch 3/3" in out
    assert "loss 0.500, accuracy 75.00 %" in out
    assert "images/s" in out
    assert "left" in out
    assert "\n" not in out
    assert log == [LINE]


@pytest.mark.parametrize("quiet", [False, True])
def test_say_and_warn(quiet, capsys):
    log = []
    screen = Screen(quiet=quiet)
    screen.log = log.append
    screen.say("words")
    screen.warn("care")
    captured = capsys.readouterr()
    assert captured.out == ("" if quiet else "words\n")
    assert captured.err == "mnistfast: warning: care\n"
    assert log == ["words", "warning: care"]


def test_quiet(capsys):
    work(Screen(quiet=True))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
