"""Whose a run folder is, what it is called and what it says."""

import datetime

import pytest

from mnistfast.engine import run_folder
from mnistfast.engine.run_folder import FILES, RunFolder, data_of_run
from mnistfast.engine.stop import Interrupted
from mnistfast.errors import CheckpointError, DivergedError, StorageError, UsageError


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class FrozenClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 2, 3, 4, 5)


def test_two_runs_in_one_second(monkeypatch):
    monkeypatch.setattr(run_folder.datetime, "datetime", FrozenClock)
    names = [RunFolder.create(None, "cnn2", 7).path.as_posix() for _ in range(3)]
    first = "runs/20260102-030405-cnn2-s7"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_occupied_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"out is not empty. It holds thesis.txt"):
        RunFolder.create("out", "cnn2", 0)


def test_overwrite_takes_only_what_a_run_wrote(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in (*FILES, "thesis.txt"):
        (out / name).write_text("old")
    RunFolder.create("out", "cnn2", 0, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "thesis.txt"]


def test_one_owner_at_a_time():
    with RunFolder.create("out", "cnn2", 0) as folder:
        (folder / "config.yaml").write_text("model: cnn2\n")
        for take in (lambda: RunFolder.reopen("out"), lambda: RunFolder.create("out", "cnn2", 0, overwrite=True)):
            with pytest.raises(UsageError, match="another process is training in out"):
                take()
        assert (folder / "config.yaml").is_file()
    RunFolder.reopen("out").release()


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="no run at"):
        RunFolder.reopen(str(tmp_path))
    assert data_of_run(tmp_path) == {}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "finished"),
        (Interrupted(2), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (DivergedError("loss is nan", "Why"), "failed: loss is nan. Why"),
        (ZeroDivisionError("bug"), "failed: bug"),
        (ZeroDivisionError("a\n\x1b[2Jb"), "failed: a\\n\\x1b[2Jb"),
        (ZeroDivisionError(), "failed: ZeroDivisionError"),
    ],
)
def test_status(error, status):
    folder = RunFolder.create("out", "cnn2", 0)
    try:
        with folder:
            folder.start()
            assert folder.status == "running"
            if error:
                raise error
    except type(error):
        pass
    assert folder.status == status
    assert "Traceback" in (folder / "log.txt").read_text() if status == "failed: bug" else True


def test_what_is_refused_before_the_start_changes_nothing():
    with RunFolder.create("out", "cnn2", 0) as folder:
        folder.start()

    def refuse():
        with RunFolder(folder.path):
            raise CheckpointError("damaged")

    with pytest.raises(CheckpointError):
        refuse()
    assert folder.status == "finished"


def test_full_disk_does_not_hide_the_error(tmp_path, monkeypatch):
    def full(*args):
        raise StorageError("disk full")

    def work():
        with RunFolder.create("out", "cnn2", 0) as folder:
            folder.start()
            monkeypatch.setattr(run_folder, "write_atomic", full)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    RunFolder(tmp_path / "out").release()  # it was let go all the same


def test_metrics_cut_back(tmp_path):
    with RunFolder.create("out", "cnn2", 0) as folder:
        for step in (5, 10, 15):
            folder.add_metrics({"step": step})
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 2')  # a crash in the middle of a line
        folder.cut_metrics(10)
        assert folder.metrics() == [{"step": 5}, {"step": 10}]
        folder.add_metrics({"step": 15})
        assert [record["step"] for record in folder.metrics()] == [5, 10, 15]
