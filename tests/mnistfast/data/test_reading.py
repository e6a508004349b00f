"""What every reader of users' files shares: opening, a bound on the length, a decoder's words in one line."""

import io
import os

import pytest

from mnistfast.data import reading
from mnistfast.errors import DataError, StorageError


def test_what_is_not_there_is_refused(tmp_path):
    for path, words in (
        (tmp_path / "gone", r": no such file\. FIX: check the path given with --data"),
        (tmp_path, r": not a regular file\. A device or a pipe might never end"),
    ):
        with pytest.raises(DataError, match=words), reading.opened(path):
            pass


@pytest.mark.timeout(20)
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.touch()

    def open_too_late(path, flags, system=os.open):
        os.unlink(path)
        os.mkfifo(path)
        return system(path, flags)

    with monkeypatch.context() as patch:
        patch.setattr(reading.os, "open", open_too_late)
        with pytest.raises(DataError, match="not a regular file"), reading.opened(path):
            pass


def test_what_the_system_refuses_is_not_the_datas_fault(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reading, "open_regular", refuse)
    with pytest.raises(StorageError, match=r"cannot be read\. Permission denied\. FIX"), reading.opened(tmp_path / "a"):
        pass


def test_closed_whatever_happens(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(KeyError), reading.opened(tmp_path / "a") as stream:  # noqa: PT012
        assert reading.whole(tmp_path / "a", stream, 3) == b"abc"
        raise KeyError
    assert stream.closed


def test_longer_than_allowed(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with reading.opened(tmp_path / "a") as stream, pytest.raises(DataError, match="has 3 bytes, 2 are allowed"):
        reading.whole(tmp_path / "a", stream, 2)


def test_what_a_disk_fails_to_read_is_not_the_datas_fault(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(StorageError, match="Input/output error"), reading.opened(tmp_path / "a"):
        raise OSError(5, "Input/output error")


def test_a_decoder_takes_no_more_at_once_than_a_header_can_have():
    stream = reading.Cautious(io.BytesIO(bytes(1 << 20)))
    assert len(stream.read(reading.MAX_AT_ONCE)) == len(stream.read()) == reading.MAX_AT_ONCE
    with pytest.raises(ValueError, match="131,073 bytes"):
        stream.read(reading.MAX_AT_ONCE + 1)
