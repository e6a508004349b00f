"""What every reader of users' files shares: opening, a bound on the length, a decoder's words in one line."""

from pathlib import Path

import pytest

from mnistfast.data import reading
from mnistfast.errors import DataError, StorageError


def test_what_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "gone", tmp_path):
        with (
            pytest.raises(DataError, match=r": no such file\. FIX: check the path given with --data"),
            reading.opened(path),
        ):
            pass


def test_what_the_system_refuses_is_not_the_datas_fault(tmp_path, monkeypatch):
    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"cannot be read\. Permission denied\. FIX"), reading.opened(tmp_path / "a"):
        pass


def test_closed_whatever_happens(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(KeyError), reading.opened(tmp_path / "a") as stream:  # noqa: PT012
        assert reading.whole(tmp_path / "a", stream) == b"abc"
        raise KeyError
    assert stream.closed


def test_longer_than_allowed(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abc")
    monkeypatch.setattr(reading, "MAX_BYTES", 2)
    with reading.opened(tmp_path / "a") as stream, pytest.raises(DataError, match="has 3 bytes, 2 are allowed"):
        reading.whole(tmp_path / "a", stream)


@pytest.mark.parametrize(("error", "words"), [(ValueError("one\ntwo"), "one"), (EOFError(), "EOFError")])
def test_reason_is_one_line(error, words):
    assert reading.reason(error) == words
