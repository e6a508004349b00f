"""The IDX reader reads what is whole and refuses everything else, with one clear line."""

import gzip
import hashlib
import re
import struct
import tracemalloc

import numpy as np
import pytest

from mnistfast.data import reading
from mnistfast.data.idx import content_md5, header, read_idx
from mnistfast.errors import DataError, StorageError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([7, 0, 9], np.uint8)
RAW = header(IMAGES) + IMAGES.tobytes()
GZ = gzip.compress(RAW, mtime=0)


def refusal(tmp_path, content, *, expect="images", name="f.gz"):
    """Returns the line with which a file of this content is refused; it names the file and a way out."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path, expect=expect)
    assert str(path) in caught.value.what
    assert caught.value.fix
    return str(caught.value)


def test_header_is_the_published_layout():
    assert header(IMAGES) == bytes.fromhex("00000803 00000002 00000003 00000004")
    assert header(LABELS) == bytes.fromhex("00000801 00000003")


@pytest.mark.parametrize("name", ["f", "f.gz", "f.idx3-ubyte"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize(("array", "expect"), [(IMAGES, "images"), (LABELS, "labels")])
def test_reads_raw_and_gzip_whatever_the_name(tmp_path, name, compress, array, expect):
    path = tmp_path / name
    path.write_bytes(compress(header(array) + array.tobytes()))
    got = read_idx(path, expect=expect)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, array, strict=True)


def test_reads_an_array_longer_than_one_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_AT_ONCE", 5)
    path = tmp_path / "f"
    path.write_bytes(GZ)
    np.testing.assert_array_equal(read_idx(path, expect="images"), IMAGES)


def test_content_md5_is_that_of_the_uncompressed_file():
    assert content_md5(IMAGES) == hashlib.md5(RAW).hexdigest()
    assert content_md5(IMAGES[:, :, ::-1]) == content_md5(IMAGES[:, :, ::-1].copy())


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file\. FIX: "):
        read_idx(tmp_path / "nowhere", expect="images")


def test_folder_in_place_of_a_file(tmp_path):
    with pytest.raises((DataError, StorageError)):  # Windows calls it a matter of permission
        read_idx(tmp_path, expect="images")


def test_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reading, "open_regular", refuse)
    with pytest.raises(StorageError, match=r"f: cannot be read\. Permission denied\. FIX: ") as caught:
        read_idx(tmp_path / "f", expect="images")
    assert caught.value.code == 7


def test_truncated_gzip_counts_what_came_out(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (10, 10, 10), np.uint8)
    whole = header(array) + array.tobytes()
    line = refusal(tmp_path, gzip.compress(whole)[:-300])
    assert "gzip ends early after " in line
    assert "(expected 1,016)" in line
    assert 600 < int(line.split("after ")[1].split(" bytes")[0].replace(",", "")) < 1016


def test_gzip_that_lacks_only_its_checksum(tmp_path):
    assert "gzip ends early after 40 bytes (expected 40)" in refusal(tmp_path, GZ[:-1])


def test_gzip_broken_off_in_the_header(tmp_path):
    assert re.search(r"gzip ends early after \d+ bytes\. FIX", refusal(tmp_path, GZ[:12]))


def test_gzip_with_a_wrong_checksum(tmp_path):
    assert "gzip data is damaged. CRC" in refusal(tmp_path, GZ[:-8] + b"\0\0\0\0" + GZ[-4:])


def test_gzip_with_damaged_data(tmp_path):
    assert "gzip data is damaged" in refusal(tmp_path, GZ[:10] + b"\xff" * (len(GZ) - 10))


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><html>Forbidden", b"\n <html>", b"\xef\xbb\xbf<?xml version='1.0'?>"]
)
@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_web_page_saved_under_the_name(tmp_path, page, wrap):
    line = refusal(tmp_path, wrap(page))
    assert "HTML or XML, not IDX. A server answered with a web page" in line
    assert "starts with '" in line


def test_compressed_twice(tmp_path):
    assert "starts with 1f8b once unpacked: not IDX" in refusal(tmp_path, gzip.compress(GZ))


@pytest.mark.parametrize(("array", "expect", "magics"), [(LABELS, "images", "13"), (IMAGES, "labels", "31")])
def test_swapped_files(tmp_path, array, expect, magics):
    line = refusal(tmp_path, header(array) + array.tobytes(), expect=expect)
    kinds = {"1": "labels", "3": "images"}
    got, wanted = (f"0x0000080{digit} ({kinds[digit]})" for digit in magics)
    assert f"IDX magic {got}, expected {wanted}. Were the files swapped?" in line


@pytest.mark.parametrize(
    "content", [b"\x00\x00\x0d\x03" + RAW[4:], b"version https://git-lfs", b"\x89PNG", b"\x00\x00"]
)
def test_other_content(tmp_path, content):
    line = refusal(tmp_path, content)
    assert f"starts with 0x{content[:4].hex()}, expected 0x00000803 (images)" in line


@pytest.mark.parametrize("content", [b"", gzip.compress(b"", mtime=0)])
def test_empty_file(tmp_path, content):
    assert "the file is empty" in refusal(tmp_path, content)


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_file_shorter_than_its_header(tmp_path, wrap):
    assert "has 9 bytes, the header alone of IDX images has 16" in refusal(tmp_path, wrap(RAW[:9]))


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_file_shorter_than_its_header_says(tmp_path, wrap):
    assert "header says 2 x 3 x 4 = 24 bytes, file has 23" in refusal(tmp_path, wrap(RAW[:-1]))


@pytest.mark.parametrize(("wrap", "has"), [(bytes, "25"), (gzip.compress, "more")])
def test_file_longer_than_its_header_says(tmp_path, wrap, has):
    assert f"header says 2 x 3 x 4 = 24 bytes, file has {has}." in refusal(tmp_path, wrap(RAW + b"\0"))


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_absurd_header_is_refused_before_memory_is_taken(tmp_path, wrap):
    content = wrap(struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"\0" * 100)
    tracemalloc.start()
    try:
        line = refusal(tmp_path, content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "4,194,304 images are allowed" in line
    assert peak < 2**20


def test_the_limit_itself_is_allowed(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(RAW)
    assert read_idx(path, expect="images", limit=24).shape == (2, 3, 4)
    with pytest.raises(DataError, match="24 bytes, 23 bytes are allowed"):
        read_idx(path, expect="images", limit=23)


def test_gzip_bomb_is_unpacked_no_further_than_its_header_says(tmp_path):
    bomb = gzip.compress(RAW + b"\0" * (64 << 20), 1)
    tracemalloc.start()
    try:
        assert "file has more" in refusal(tmp_path, bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("content", [RAW, GZ], ids=["raw", "gz"])
def test_no_truncation_is_read(tmp_path, content):
    for length in range(len(content)):
        refusal(tmp_path, content[:length])


def test_no_flipped_bit_of_a_gzip_file_changes_what_is_read(tmp_path):
    path = tmp_path / "f.gz"
    refused = 0
    for bit in range(8 * len(GZ)):
        content = bytearray(GZ)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            np.testing.assert_array_equal(read_idx(path, expect="images"), IMAGES, strict=True)
        except DataError:
            refused += 1
    assert refused > 6 * len(GZ)  # the rest are bits that carry nothing, as the time stamp's


def test_no_flipped_bit_of_a_header_is_read(tmp_path):
    for bit in range(8 * 16):
        content = bytearray(RAW)
        content[bit // 8] ^= 1 << bit % 8
        refusal(tmp_path, bytes(content))
