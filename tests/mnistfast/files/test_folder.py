"""A folder that is held stays the one it was."""

import shutil

import pytest

from mnistfast.errors import StorageError
from mnistfast.files.atomic import write_atomic
from mnistfast.files.folder import Folder


def test_a_folder_that_is_held_is_written_to_wherever_it_is(tmp_path):
    (tmp_path / "held").mkdir()
    with Folder(tmp_path / "held") as folder:
        assert folder.is_at_its_path()
        (tmp_path / "held").rename(tmp_path / "moved")
        assert not folder.is_at_its_path()
        (tmp_path / "held").mkdir()
        assert not folder.is_at_its_path()
        write_atomic(tmp_path / "held" / "a", "x", folder)
        assert folder.names() == [path.name for path in (tmp_path / "moved").iterdir()] == ["a"]
        assert not list((tmp_path / "held").iterdir())
        shutil.rmtree(tmp_path / "moved")
        with pytest.raises(StorageError, match=r"cannot write .*held.a: no such file or directory"):
            write_atomic(tmp_path / "held" / "a", "x", folder)
