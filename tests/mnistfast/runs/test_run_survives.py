"""What can happen to a run's process, terminal, disk and folder: it can be resumed afterwards, bit for bit.

What can happen to one save does so at every call of the system that it makes.
"""

import contextlib
import errno
import itertools
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from mnistfast import train
from mnistfast.data.sources import load
from mnistfast.errors import StorageError
from mnistfast.options.learning import TrainConfig
from mnistfast.report.screen import Screen
from mnistfast.runs.checkpoint import load_checkpoint
from mnistfast.runs.recorder import Recorder
from mnistfast.runs.run_folder import RunFolder
from mnistfast.runs.state import load_state
from mnistfast.tasks.run import begin
from mnistfast.tasks.train import prepare
from tests.mnistfast.runs.outcomes import assert_same_outcome, at_steps, outcome

pytestmark = pytest.mark.usefixtures("no_pictures")

CALLS = ("open", "write", "ftruncate", "fsync", "replace", "unlink")  # of os: all that changes a run's folder


@pytest.fixture
def uninterrupted(finished):
    return outcome(finished)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def meaning(name, content):
    """Returns the bytes of a file, of a checkpoint without what is drawn anew: its entries' order, so the digest."""
    if not name.endswith(".safetensors"):
        return content
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    del header["__metadata__"]["digest"]
    return header, content[end:]


def assert_usable(folder):
    """Every file of a run can be read, or the folder is not a run yet."""
    for checkpoint in folder.glob("*.safetensors"):
        load_checkpoint(checkpoint)
    if (folder / "config.yaml").is_file():
        load_state(folder / "state.pt")


class OneSave:
    """A run whose first epoch is saved and whose second one can be, again and again."""

    def __init__(self, data, path):
        config = TrainConfig(model="lenet5", data=str(data), epochs=2, batch_size=40, val=20, threads=1)
        prepared = prepare(config, load(str(data)), torch.device("cpu"))
        self.trainer, self.folder = prepared.trainer, RunFolder.create(str(path), "lenet5", 0)
        self.recorder = begin(prepared, self.folder, "train", Screen(quiet=True))
        steps = (record for record in self.trainer.run() if record)
        record = next(steps)
        self.recorder.save(self.trainer.state_dict(), self.trainer.judged.state_dict(), record)
        self.old = contents(path)
        assert_usable(path)
        self.record = next(steps)
        self.state = self.trainer.state_dict()  # once: the same bytes in every save, for no time goes on
        self.restore()
        self.save()
        self.new = contents(path)
        assert_usable(path)

    def restore(self):
        """Makes the folder what it was after the first epoch."""
        for name in contents(self.folder.path).keys() - self.old.keys():
            (self.folder / name).unlink()
        for name, content in self.old.items():
            if name != ".lock":
                (self.folder / name).write_bytes(content)
        # One that has saved no best epoch yet, as if the second one were the best, if it is not.
        self.recorder = Recorder(self.folder, self.recorder.info, {})

    def save(self):
        self.recorder.save(self.state, self.trainer.judged.state_dict(), self.record)

    def assert_old_or_new(self):
        """Each file is the one or the other, and none is new before those that it needs."""
        found = contents(self.folder.path)
        assert not [name for name in found if name.endswith(".tmp")]
        metrics = found.pop("metrics.jsonl")  # it alone grows: what a cut-off write left is not read
        assert metrics.startswith(self.old["metrics.jsonl"])
        assert self.new["metrics.jsonl"].startswith(metrics)
        news = [metrics == self.new["metrics.jsonl"]]
        for name in ("state.pt", "last.safetensors", "best.safetensors"):
            content, old, new = (
                meaning(name, content) for content in (found.pop(name), self.old[name], self.new[name])
            )
            assert content in (old, new)
            news += [content == new] * (old != new)
        assert news == sorted(news, reverse=True)
        assert {name: self.old[name] for name in found} == found


@pytest.fixture
def one_save(tiny, tmp_path):
    made = OneSave(tiny, tmp_path / "run")
    assert made.new["state.pt"] != made.old["state.pt"]
    yield made
    made.folder.release()


class Fault:
    """Counts what is asked of the system, and calls `action` before the `at`-th call, or before every one."""

    def __init__(self, monkeypatch, at, action):
        self.count, self.at, self.action = 0, at, action
        for name in CALLS:
            monkeypatch.setattr(os, name, partial(self._call, getattr(os, name)))

    def _call(self, function, *args, **folders):
        self.count += 1
        if self.at in (None, self.count):
            self.action(function, *args)
        return function(*args, **folders)


def half_a_write(function, *args):
    if function.__name__ == "write":
        function(args[0], args[1][: len(args[1]) // 2])


def raising(error):
    def action(function, *args):
        half_a_write(function, *args)
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "comes_out_as"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (OSError(errno.EIO, "Input/output error"), StorageError),
        (MemoryError(), MemoryError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_at_any_call_of_a_save(error, comes_out_as, one_save, monkeypatch):
    for at in itertools.count(1):
        one_save.restore()
        with monkeypatch.context() as patch:
            fault = Fault(patch, at, raising(error))
            with contextlib.suppress(comes_out_as):
                one_save.save()
        one_save.assert_old_or_new()
        if fault.count < at:
            break
    assert at > 18  # opened, written, cut, synced and renamed three times, and the folder synced


@pytest.mark.filterwarnings("ignore:TypedStorage")  # safetensors does without it where it can
def test_no_memory_at_fifty_moments_of_a_save(one_save):
    """At any of the steps that Python takes, its own functions and those in C."""
    left = 0

    def profile(frame, event, argument):
        nonlocal left
        left -= 1
        if left == 0:
            raise MemoryError

    def save(at):
        nonlocal left
        left = at
        one_save.restore()
        sys.setprofile(profile)
        try:
            one_save.save()
        finally:
            sys.setprofile(None)
        return at - left

    steps = save(0)
    failed = 0
    for at in random.Random(0).sample(range(1, steps), 50):
        try:
            save(at)
        except MemoryError:
            failed += 1
        one_save.assert_old_or_new()
    assert failed > 40  # some are swallowed where an object is deleted


@pytest.mark.parametrize("which", ["ahead", pytest.param("all", marks=pytest.mark.slow)])
def test_death_at_any_call_of_a_run(which, options, tmp_path, monkeypatch, uninterrupted):
    """Copies the folder before every call: the disks of every possible death. All resume.

    The quick part: metrics.jsonl is an epoch ahead of the state.
    """
    out, disks = tmp_path / "run", {}

    def copying(function, *args):
        now = frozenset(contents(out).items()) if out.is_dir() else None
        if now and now not in disks:
            disks[now] = shutil.copytree(out, tmp_path / str(len(disks)))

    with monkeypatch.context() as patch:
        Fault(patch, None, copying)
        assert train.main([*options, "--out", str(out), "--quiet"]) == 0
    assert len(disks) > 60
    resumable = [disk for disk in disks.values() if (disk / "config.yaml").is_file()]
    assert len(disks) - len(resumable) < 25  # only before the first training step
    if which == "ahead":
        resumable = [disk for disk in resumable if records(disk) == 2 and load_state(disk / "state.pt")["step"] == 5]
        assert len(resumable) >= 3
        resumable = resumable[::3]
    for disk in resumable:
        assert_usable(disk)
        assert (disk / "STATUS").read_text() in ("running\n", "finished\n")
        assert train.main(["--resume", str(disk), "--quiet"]) == 0
        assert_same_outcome(disk, uninterrupted)


def records(folder):
    """Returns how many whole lines metrics.jsonl has."""
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output")]
)
def test_a_failure_at_any_call_of_a_run(error, options, tmp_path, monkeypatch, capsys, uninterrupted):
    """One line and exit code 7, and STATUS says so; what can be resumed comes to the same."""
    for at in itertools.count(1, 5):
        out = tmp_path / str(at)
        with monkeypatch.context() as patch:
            fault = Fault(patch, at, raising(error))
            code = train.main([*options, "--out", str(out), "--quiet"])
        if fault.count < at:
            break
        said = capsys.readouterr().err
        status = (out / "STATUS").read_text() if (out / "STATUS").is_file() else ""
        assert (code, said.count("\n")) == (7, 1) if status != "finished\n" else code == 0
        assert status == "" or status == "finished\n" or status.startswith("failed: cannot write")
        assert_usable(out)
        if (out / "config.yaml").is_file():
            assert train.main(["--resume", str(out), "--quiet"]) == 0
            assert_same_outcome(out, uninterrupted)
    assert at > 60


def test_no_memory_in_a_run(options, tmp_path, monkeypatch, capsys, uninterrupted):
    out = tmp_path / "run"

    def fail(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        at_steps(patch, [7], lambda: patch.setattr(torch, "save", fail))
        assert train.main([*options, "--out", str(out), "--quiet"]) == 6
    assert capsys.readouterr().err == "mnistfast: error: out of memory. FIX: a smaller --batch-size\n"
    assert (out / "STATUS").read_text() == "failed: MemoryError\n"
    assert train.main(["--resume", str(out), "--quiet"]) == 0
    assert_same_outcome(out, uninterrupted)


# Ends its process at the k-th rename, before or after it; otherwise it is `mnistfast train`.
DRIVER = """
import os, sys
count, moment, rename = int(sys.argv[1]), sys.argv[2], os.replace
def replace(source, target, **folders):
    global count
    count -= 1
    if count == 0 and moment == "before":
        os._exit(9)
    rename(source, target, **folders)
    if count == 0:
        os._exit(9)
os.replace = replace
from mnistfast.train import main
sys.exit(main(sys.argv[3:]))
"""


def kill(kind, words, chance):
    """Runs a training in a process of its own and kills it at a random moment, or within a random write."""
    at = chance.randrange(8, 24)  # from the second epoch's end or so on
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(at if kind != "signal" else 0), kind, *words],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if kind == "signal":
            process.stdout.readline()  # what it is about to do: the folder is there
            time.sleep(chance.uniform(0, 1))
            process.kill()
        process.stdout.read()
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part", "times"), [*(("signal", part, 10) for part in range(5)), ("before", 0, 7), ("after", 0, 7)]
)
def test_kills(kind, part, times, options, tmp_path, uninterrupted):
    """Kills processes at random moments, 50 in all, and between renames: no file unreadable, the same bits."""
    chance = random.Random(f"{kind}{part}")
    killed = 0
    for number in range(times):
        out = tmp_path / str(number)
        killed += kill(kind, [*options, "--out", str(out)], chance) in (-signal.SIGKILL, 9)
        assert_usable(out)
        if (out / "config.yaml").is_file():
            assert train.main(["--resume", str(out), "--quiet"]) == 0
        else:  # so early that nothing was begun
            assert train.main([*options, "--out", str(out), "--overwrite", "--quiet"]) == 0
        assert_same_outcome(out, uninterrupted)
    assert killed >= times * 2 // 3


# `mnistfast train` on the terminal that is its input, which waits in its 7th step until that is closed.
ON_A_TERMINAL = """
import fcntl, os, signal, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
from mnistfast.training.launching import Launcher
from mnistfast.train import main
take = Launcher.take
def taking(self, batch):
    if self.learner.cursor.coming[0].item() == 6:
        print("waiting", flush=True)
        while os.isatty(0):
            time.sleep(0.01)
        os.kill(0, signal.SIGHUP)  # as a shell does too
    return take(self, batch)
Launcher.take = taking
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("heeded", "code"), [("SIG_DFL", 129), ("SIG_IGN", 0)])
def test_a_closed_terminal(heeded, code, options, tmp_path, uninterrupted):
    """The run is saved at the step's end; where SIGHUP is ignored it goes on, whatever it says to nobody."""
    out, (master, slave) = tmp_path / "run", pty.openpty()
    line = [sys.executable, "-c", ON_A_TERMINAL, heeded, *options, "--out", str(out)]
    process = subprocess.Popen(line, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    said = b""
    while b"waiting" not in said:
        said += os.read(master, 1000)
    os.close(master)
    assert process.wait(60) == code
    if code:
        assert (out / "STATUS").read_text() == "interrupted\n"
        assert load_state(out / "state.pt")["step"] == 7
        assert train.main(["--resume", str(out), "--quiet"]) == 0
    assert_same_outcome(out, uninterrupted)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MB of one's own."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mount], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting needs rights that are not there: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def test_a_disk_that_fills_up(small_disk, options, monkeypatch, capsys, uninterrupted):
    out, filler = small_disk / "run", small_disk / "filler"

    def fill():
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with monkeypatch.context() as patch:
        at_steps(patch, [7], fill)
        assert train.main([*options, "--out", str(out), "--quiet"]) == 7
    reason = f"cannot write {out}/state.pt: no space left"
    assert capsys.readouterr().err.startswith(f"mnistfast: error: {reason}")
    assert (out / "STATUS").read_text().startswith(f"failed: {reason}")
    filler.unlink()
    assert train.main(["--resume", str(out), "--quiet"]) == 0
    assert_same_outcome(out, uninterrupted)


def test_a_folder_deleted_under_its_run(options, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    at_steps(monkeypatch, [7], lambda: shutil.rmtree(out))
    assert train.main([*options, "--out", str(out), "--quiet"]) == 7
    error = capsys.readouterr().err
    assert error.startswith(f"mnistfast: error: {out} is no longer the folder of this run. It was deleted or replaced")
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.slow
def test_a_folder_replaced_at_any_call_of_its_run(options, tmp_path, monkeypatch, capsys):
    """Nothing of the old run comes into the new one's folder."""
    out = tmp_path / "run"

    def replace(function, *args):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / "config.yaml").write_text("new")
        new.append(RunFolder(out))

    for at in itertools.count(2, 3):
        new = []
        with monkeypatch.context() as patch:
            Fault(patch, at, lambda *call: (patch.undo(), replace(*call)))
            code = train.main([*options, "--out", str(out), "--quiet", "--overwrite"])
        if not new:
            break
        new[0].release()
        error = capsys.readouterr().err
        assert (code, error.count("\n")) in ((7, 1), (2, 1), (0, 0))  # before it is taken; after the last write
        assert set(contents(out)) == {".lock", "config.yaml"}
    assert at > 100


@pytest.mark.slow
def test_a_new_run_in_the_place_of_a_live_one(options, tmp_path, uninterrupted):
    out = tmp_path / "run"
    words = [*options, "--epochs", "100000", "--patience", "0", "--out", str(out)]
    line = [sys.executable, "-m", "mnistfast.train", *words]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as old:
        while not (out / "metrics.jsonl").is_file():
            time.sleep(0.1)
            assert old.poll() is None
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(exist_ok=True)
        assert train.main([*options, "--out", str(out), "--overwrite", "--quiet"]) == 0
        said = old.communicate(timeout=60)[1]
    assert old.returncode == 7
    assert f"{out} is no longer the folder of this run" in said
    assert_same_outcome(out, uninterrupted)


@pytest.mark.slow
def test_of_two_starts_at_once_one_has_the_folder(options, tmp_path, uninterrupted):
    out = tmp_path / "run"
    out.mkdir()
    line = [sys.executable, "-m", "mnistfast.train", *options, "--out", str(out), "--overwrite", "--quiet"]
    both = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 0], [0, 2])  # one after the other, if the machine had it so
    assert all("another process is training" in text for text, code in zip(said, codes, strict=True) if code)
    assert_same_outcome(out, uninterrupted)
