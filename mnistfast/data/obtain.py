"""The files of published sets: where they lie on this machine, else fetched into the cache and verified."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from mnistfast.data import cifar, idx_set, published
from mnistfast.data.archives import member, unpacked, unzipped
from mnistfast.data.fetch import ROOM, cache_folder, fetch
from mnistfast.data.idx import content_md5, read_idx_stream
from mnistfast.data.published import IdxSet
from mnistfast.data.reading import present
from mnistfast.errors import DataError, StorageError
from mnistfast.files.atomic import make_folder, write_atomic
from mnistfast.files.decoding import decoding_as


def idx_files(name: str, *, offline: bool) -> dict[str, Path]:
    """Returns the four IDX files of the set `name` of `published.SETS`, by role.

    Raises:
        DataError: `$MNISTFAST_DATA` is no folder or has a part of them, or an archive is damaged.
        StorageError: they are not on this machine, and `offline` forbids a download or no mirror delivers them.
    """
    found = published.SETS[name]
    return _at_hand(name, found) or _download(name, found, offline)


def cifar10(*, offline: bool) -> Path:
    """Returns the archive of CIFAR-10's binary version, or the folder that was unpacked of it.

    Raises:
        DataError: `$MNISTFAST_DATA` is no folder.
        StorageError: it is not on this machine, and `offline` forbids a download or no mirror delivers it.
    """
    archive, md5 = published.CIFAR10_ARCHIVE
    cache = cache_folder("cifar10")
    folders = [*_environment_folders("cifar10", unique=True), cache]
    candidates = [folder / name for folder in folders for name in ("cifar-10-batches-bin", archive, ".")]
    for path in candidates:
        if present(path) or present(path / cifar.TEST_FILE):
            return path
    if offline:
        raise _forbidden("cifar10", cache, f"put {archive} there")
    fetch([archive], cache, published.CIFAR10_MIRRORS, partial(_verify_whole, md5), max_bytes=published.CIFAR10_BYTES)
    return cache / archive


def title(name: str) -> str:
    """Returns what messages call the set `name`."""
    return "MNIST" if name == "mnist" else name


def _environment_folders(name: str, *, unique: bool) -> list[Path]:
    """Returns where `$MNISTFAST_DATA` may hold the set `name`.

    The folder itself is one of them for MNIST and where the set's file names are its own (`unique`): the files of
    Fashion-MNIST and KMNIST are called as MNIST's.
    """
    value = os.environ.get("MNISTFAST_DATA")
    if not value:
        return []
    root = Path(os.path.expanduser(value))
    if not os.path.isdir(root):
        raise DataError(f"MNISTFAST_DATA is {value}", "There is no such folder", "correct it or unset it")
    own = unique or name in ("mnist", root.name)
    return [*([root] if own else []), root / name]


def _at_hand(name: str, found: IdxSet) -> dict[str, Path] | None:
    """Returns the set's four files by role from where they may lie on this machine, None where they do not."""
    unique = found.files is not published.ROLES
    for folder in _environment_folders(name, unique=unique):
        if idx_set.find(folder, found.files):
            return idx_set.complete(folder, found.files)
    for folder in (cache_folder(name), *map(Path, found.folders)):
        files = idx_set.find(folder, found.files)
        if len(files) == len(found.files):
            return files
    if found.archive:
        for folder in [*_environment_folders(name, unique=True), cache_folder("emnist")]:
            if present(folder / found.archive[0]):
                return _unpacked(folder / found.archive[0], name, found)
    return None


def _download(name: str, found: IdxSet, offline: bool) -> dict[str, Path]:
    """Fetches into the cache folder what is missing there and returns its four files by role."""
    folder = cache_folder(name)
    if offline:
        raise _forbidden(name, folder, _place_them(found))
    try:
        if found.archive:
            archive, md5 = found.archive
            folder, limit = cache_folder("emnist"), published.EMNIST_BYTES
            fetch([archive], folder, found.mirrors, partial(_verify_whole, md5), max_bytes=limit)
            return _unpacked(folder / archive, name, found)
        present = idx_set.find(folder, found.files)
        wanted = {f"{file}.gz": role for role, file in found.files.items() if role not in present}
        fetch(list(wanted), folder, found.mirrors, partial(_verify_idx, name, found, wanted))
    except StorageError as error:
        raise StorageError(error.what, error.why, error.fix or _place_them(found)) from error
    return idx_set.complete(folder, found.files)


def _place_them(found: IdxSet) -> str:
    return f"put {idx_set.listed(found.files)} in a folder and give it with --data FOLDER or in MNISTFAST_DATA"


def _forbidden(name: str, folder: Path, fix: str) -> StorageError:
    what = f"no {title(name)} in MNISTFAST_DATA ({os.environ.get('MNISTFAST_DATA') or 'not set'}) nor in {folder}"
    return StorageError(what, "--offline forbids a download", fix)


def _verify_idx(name: str, found: IdxSet, roles: Mapping[str, str], file: str, content: bytes, url: str) -> None:
    role = roles[file]
    array = read_idx_stream(io.BytesIO(content), url, expect=idx_set.kind(role))
    if role in found.md5:
        md5 = content_md5(array)
        if md5 != found.md5[role]:
            raise DataError(f"{url}: not the official {title(name)} (md5 {md5}, expected {found.md5[role]})")
    else:
        _verify_whole(found.served_md5[role], file, content, url)


def _verify_whole(expected: str, file: str, content: bytes, url: str) -> None:
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != expected:
        raise DataError(f"{url}: not the official {file} (md5 {md5}, expected {expected})")


def _unpacked(archive: Path, name: str, found: IdxSet) -> dict[str, Path]:
    """Takes the set's four files out of the archive of all of EMNIST, into the cache."""
    folder = make_folder(cache_folder(name), fix=ROOM)
    again = "delete it and fetch it again"
    with decoding_as(DataError, f"{archive}: not a whole .zip file", again), unzipped(archive) as opened:
        for file in found.files.values():
            entry = next((entry for entry in opened.infolist() if entry.filename.endswith(f"{file}.gz")), None)
            if entry is None:
                raise DataError(f"{archive}: has no {file}.gz", fix=again)
            if entry.file_size > published.EMNIST_BYTES:
                what = f"{archive}: {file}.gz has {entry.file_size:,} bytes"
                raise DataError(what, "No part of EMNIST's archive is longer than the whole", again)
            with member(opened, entry.filename) as stream:
                write_atomic(folder / f"{file}.gz", unpacked(stream, entry.file_size).data, fix=ROOM)
    return idx_set.complete(folder, found.files)
