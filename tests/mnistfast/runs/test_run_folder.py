"""Whose a run folder is, what it is called and what it says."""

import datetime
import errno
import os
import shutil

import pytest

from mnistfast.errors import CheckpointError, DivergedError, StorageError, UsageError
from mnistfast.runs import run_folder
from mnistfast.runs.run_folder import FILES, RunFolder, data_of_run
from mnistfast.stop import Interrupted


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
    (out / ".mnistfast-0123abcd.tmp").write_text("of a process that was killed")
    with RunFolder.create("out", "cnn2", 0, overwrite=True) as folder:
        assert (out / "config.yaml").read_text() == "old"  # before the start nothing is changed
        folder.start()
        assert sorted(path.name for path in out.iterdir()) == [".lock", "STATUS", "thesis.txt"]


def test_a_kill_while_an_old_run_is_overwritten_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    """At every deletion: STATUS says `running`, and what is no run any more cannot be resumed."""
    out, unlink = tmp_path / "out", os.unlink

    class Death(BaseException):
        pass

    def dying(name, **where):
        nonlocal left
        if not left:
            raise Death
        left -= 1
        unlink(name, **where)

    deletions = len(FILES) - 1  # all but STATUS
    for count in range(deletions):
        out.mkdir(exist_ok=True)
        for name in FILES:
            (out / name).write_text("finished\n")
        folder, left = RunFolder.create("out", "cnn2", 0, overwrite=True), count
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", dying)
            with pytest.raises(Death):
                folder.start()
        folder.release()
        assert (out / "STATUS").read_text() == "running\n"
        present = {path.name for path in out.iterdir()}
        assert present >= set(FILES) if count == 0 else "config.yaml" not in present
        assert {"state.pt", "best.safetensors", "last.safetensors"} <= present or "config.yaml" not in present


def replaced():
    shutil.rmtree("out")
    os.mkdir("out")


def moved():
    os.rename("out", "elsewhere")
    os.mkdir("out")


@pytest.mark.parametrize("loss", [lambda: shutil.rmtree("out"), replaced, lambda: os.unlink("out/.lock")])
def test_a_folder_that_is_no_longer_the_run_s_is_not_written_to(loss, tmp_path):
    """The new owner finds its folder as it made it, whatever the old one does then, and can finish."""
    old = RunFolder.create("out", "cnn2", 0)
    old.start()
    loss()
    with RunFolder.create("out", "cnn2", 0, overwrite=True) as new:
        new.start()
        before = contents(tmp_path / "out")
        for change in (
            lambda: old.write(old / "state.pt", b"old"),
            lambda: old.add_metrics({"step": 5}),
            lambda: old.cut_metrics(0),
            lambda: old.log("old"),
            lambda: old.set_status("old"),
            lambda: old.__exit__(None, None, None),
        ):
            with pytest.raises(StorageError, match=r"^out is no longer the folder of this run. It was deleted or rep"):
                change()
        with pytest.raises(UsageError, match="another process is training"):
            RunFolder(tmp_path / "out")
        assert contents(tmp_path / "out") == before
    assert new.status == "finished"


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file"), CheckpointError("env.json is missing")]
)
def test_a_file_missed_in_a_folder_that_is_gone_is_no_damage(error):
    def work():
        with RunFolder.create("out", "cnn2", 0) as folder:
            folder.start()
            shutil.rmtree("out")
            raise error

    with pytest.raises(StorageError, match="out is no longer the folder of this run"):
        work()


def test_a_folder_that_was_moved_says_what_it_is(tmp_path):
    def work():
        with RunFolder.create("out", "cnn2", 0) as folder:
            folder.start()
            moved()
            folder.write(folder / "state.pt", b"x")

    with pytest.raises(StorageError, match="no longer the folder"):
        work()
    assert (tmp_path / "elsewhere" / "STATUS").read_text().startswith("failed: out is no longer the folder")
    assert not list((tmp_path / "out").iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("gap", ["open", "FileLock.acquire"])
def test_a_folder_replaced_while_it_is_taken(gap, monkeypatch):
    """Between any two steps of taking it: nobody owns what he did not lock."""
    os.mkdir("out")
    owner, name = (os, gap) if gap == "open" else (run_folder.FileLock, "acquire")
    work = getattr(owner, name)

    def late(*args, **kwargs):
        found = work(*args, **kwargs)
        monkeypatch.setattr(owner, name, work)
        replaced()
        return found

    monkeypatch.setattr(owner, name, late)
    with pytest.raises((UsageError, StorageError)):
        RunFolder.create("out", "cnn2", 0)
    RunFolder.create("out", "cnn2", 0).release()


def test_a_run_that_came_and_went_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    def finished_meanwhile(path):
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        with RunFolder.create("out", "cnn2", 0) as other:
            other.start()
        return path

    monkeypatch.setattr(run_folder, "make_folder", finished_meanwhile)
    with pytest.raises(UsageError, match=r"out is not empty. It holds STATUS"):
        RunFolder.create("out", "cnn2", 0)
    RunFolder(tmp_path / "out").release()


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


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_disk_that_takes_nothing_does_not_hide_the_error(code, tmp_path, monkeypatch):
    def work():
        with RunFolder.create("out", "cnn2", 0) as folder:
            folder.start()
            monkeypatch.setattr(os, "write", failing(OSError(code, "No")))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        work()
    assert not hasattr(caught.value, "log_path")  # nothing is in that file
    RunFolder(tmp_path / "out").release()  # it was let go all the same


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_for_another_file_and_still_a_status(code, monkeypatch):
    opened = os.open

    def full(name, flags, *args, **kwargs):
        if flags & os.O_CREAT:
            raise OSError(code, "No space left on device")
        return opened(name, flags, *args, **kwargs)

    def work(folder):
        with folder:
            folder.start()
            monkeypatch.setattr(os, "open", full)
            folder.log("is not kept, and no reason to stop")
            folder.add_metrics({"step": 1})

    folder = RunFolder.create("out", "cnn2", 0)
    with pytest.raises(StorageError, match=r"cannot write out.metrics.jsonl: no space left"):
        work(folder)
    assert folder.status.startswith("failed: cannot write out/metrics.jsonl: no space left")


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
