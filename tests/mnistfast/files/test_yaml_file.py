"""Files of options: what is read, and what a few lines could make of a machine's memory is refused."""

import contextlib
import os

import pytest

from mnistfast import evaluate, train
from mnistfast.errors import CheckpointError, UsageError
from mnistfast.files.yaml_file import read_options
from mnistfast.runs.run_folder import data_of_run

BILLION = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
HOSTILE = {
    "aliases": BILLION,
    "nesting": "lr: " + "[" * 50_000,
    "closed nesting": "lr: " + "[" * 500 + "]" * 500,
    "a mapping within itself": "lr: &lr {a: *lr}",
    "long": "lr: " + "1" * (2 << 20),
    "digits": f"epochs: {10**400}",
    "digits of a real number": f"lr: {10**400}",
    "a date": "lr: 2001-01-01",
    "a tag": "lr: !!python/object/apply:os.system [echo]",
    "a list": "[1, 2]",
    "a number's name": "1: 2",
    "bytes": b"lr: \xff\xfe",
    "zeros": b"\0" * 100,
    "nothing": "",
    "an unknown option": "learning_rate: 1",
    "not a number": "lr: .nan",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_with_one_line(name, tmp_path, capsys):
    text = HOSTILE[name]
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert train.main(["--config", str(path), "--print-config"]) == 2
    error = capsys.readouterr().err
    assert (error.startswith("mnistfast: error: "), error.count("\n"), len(error) < 1000) == (True, 1, True)
    with contextlib.suppress(CheckpointError):  # of a run it only takes where the run's data are
        data_of_run(tmp_path)


def test_a_runs_own_file(trained, tmp_path, capsys):
    (trained / "config.yaml").write_text(BILLION)
    assert train.main(["--resume", str(trained)]) == 2
    assert evaluate.main([str(trained), "--out", str(tmp_path)]) == 4
    assert capsys.readouterr().err.count("\n") == 2
    (trained / "config.yaml").write_text("data: [1, 2]")
    assert evaluate.main([str(trained), "--out", str(tmp_path)]) == 4
    assert "config.yaml is damaged. Its data is [1, 2]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "zeros"), [("--epochs", 400), ("--lr", 400), ("--seed", 5000), ("--max-steps", 19)], ids=str
)
def test_numbers_without_bounds(option, zeros, capsys):
    assert train.main([option, "1" + "0" * zeros]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("fifo", "endless", "."):
        with pytest.raises(UsageError, match=r"is no file of options. .*Not a regular file"):
            read_options(tmp_path / name)
    with pytest.raises(UsageError, match="no configuration file at"):
        read_options(tmp_path / "none")


def test_what_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1e-3\nbetas:\n- 0.5\n- 0.75\ndata: null\n")
    assert read_options(tmp_path / "a.yaml") == {"lr": "1e-3", "betas": [0.5, 0.75], "data": None}
