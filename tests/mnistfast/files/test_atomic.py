"""Files are whole or not there."""

import errno
import json
import os

import pytest

from mnistfast.errors import StorageError
from mnistfast.files.atomic import make_folder, write_atomic, write_json


def test_text_and_bytes(tmp_path):
    write_atomic(tmp_path / "a", "grün\n")
    write_atomic(tmp_path / "b", b"\x00\xff")
    write_json(tmp_path / "c", {"x": [1, 2.5]})
    assert (tmp_path / "a").read_text(encoding="utf-8") == "grün\n"
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert json.loads((tmp_path / "c").read_text()) == {"x": [1, 2.5]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, call):
    write_atomic(tmp_path / "a", "old")
    monkeypatch.setattr(os, call, failing(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(
        StorageError, match=r"cannot write .*a: no space left \(needs 2.0 MB, .* MB free on .*previous one is kept"
    ):
        write_atomic(tmp_path / "a", b"x" * 2_000_000)
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_denied(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", failing(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(StorageError, match=r"permission denied. Nothing was there before"):
        write_atomic(tmp_path / "a", "x")


def test_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", "x")
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_do_not_mix(tmp_path, monkeypatch):
    """The second one writes the whole file in the middle of the first one's write."""
    fsync = os.fsync

    def meanwhile(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        write_atomic(tmp_path / "a", "second")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_atomic(tmp_path / "a", "the first")
    assert (tmp_path / "a").read_text() == "the first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *names, **folders: (calls.append("replace"), replace(*names, **folders)))
    write_atomic(tmp_path / "a", "x")
    assert calls == ["fsync", "replace", "fsync"]  # the content, the name, the folder's list of names


def test_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    assert make_folder(tmp_path / "a" / "b").is_dir()
    with pytest.raises(StorageError, match="cannot make the folder"):
        make_folder(tmp_path / "file" / "b")


def test_who_writes_says_what_helps(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", failing(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(StorageError, match="FIX: another --out folder"):
        write_atomic(tmp_path / "a", "x")
    with pytest.raises(StorageError, match="FIX: a cache"):
        write_atomic(tmp_path / "a", "x", fix="a cache")
