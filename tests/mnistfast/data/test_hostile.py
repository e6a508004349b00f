"""Files made to hang a reader or to take its memory: each is refused with one line, soon and in little memory."""

import gzip
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import zlib
from functools import cache, reduce
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnistfast import train
from mnistfast.data import cifar, published
from mnistfast.data.idx import header

PATIENCE = 60  # seconds, after which a reader that waits or goes on for ever is ended
MEMORY = 1 << 30  # of any refusal, beyond what the imports take
MIB = 1 << 20
IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = published.ROLES.values()
KEYS = ("x_train", "y_train", "x_test", "y_test")
REFUSED = "not a regular file"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")


# How the files are made: sparse, or of one packed block over and over.


def sparse(path, size, start=b""):
    """Writes a file of `size` bytes, all zero after `start`, that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def gzip_of(*parts):
    """Returns gzip content that unpacks to the `parts`, each bytes or (bytes, how often)."""
    pairs = [part if isinstance(part, tuple) else (part, 1) for part in parts]
    return b"".join(gzip.compress(content) * count for content, count in pairs)


def deflated(start, zeros):
    """Returns deflate data that unpack to `start` and so many MiB of zeros."""
    packer = zlib.compressobj(9, wbits=-15)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * zeros + packer.flush()


@cache
def checksum(start, zeros):
    """Returns the CRC-32 of `start` and so many MiB of zeros."""
    return reduce(lambda crc, _: zlib.crc32(bytes(MIB), crc), range(zeros), zlib.crc32(start))


def npy(descr, shape, version=1, length=None):
    """Returns the start of an .npy file; `length` is what it says of its header, None the truth."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}}}\n".encode()
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + text


def zip_of(path, members, *, flags=0, method=8):
    """Writes a .zip file of members (name, deflate data, size, checksum) that zipfile would not write."""
    content, entries = b"", b""
    for name, data, size, crc in members:
        about = struct.pack("<HHHHHIIIHH", 20, flags, method, 0, 0x21, crc, len(data), size, len(name), 0)
        entries += b"PK\x01\x02\x14\0" + about + struct.pack("<HHHII", 0, 0, 0, 0, len(content)) + name.encode()
        content += b"PK\x03\x04" + about + name.encode() + data
    return zip_ended(path, content, entries, len(members))


def zip_ended(path, content, entries, count):
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(entries), len(content), 0)
    path.write_bytes(content + entries + b"PK\x05\x06" + end)
    return path


def npz(path, start=None, zeros=0, **changed):
    """Writes an .npz file: six images of 2 x 2, or all members `start` and so many MiB of zeros, or some `changed`."""
    usual = {"x": npy("|u1", (6, 2, 2)) + bytes(24), "y": npy("|u1", (6,)) + bytes(range(6))}
    members = {key: (start if start else usual[key[0]], zeros) for key in KEYS} | changed
    return zip_of(
        path,
        [
            (f"{key}.npy", deflated(first, count), len(first) + count * MIB, checksum(first, count))
            for key, (first, count) in members.items()
        ],
    )


def tar_gz(path, *parts):
    path.write_bytes(gzip_of(*parts))
    return path


def tar_header(name="a", size=0, kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def csv(path, *parts):
    path.write_bytes(b"".join(parts))
    return path


def idx_folder(path, **changed):
    """Writes an IDX folder of 20 and 20 images, `changed` files by role as bytes or as what writes them to a path."""
    images, labels = np.zeros((20, 2, 2), np.uint8), np.arange(20, dtype=np.uint8) % 10
    for role, name in published.ROLES.items():
        array = images if role.endswith("images") else labels
        content = changed.get(role.replace("-", "_"), header(array) + array.tobytes())
        if callable(content):
            content(path / name)
        elif content.startswith(b"\x1f\x8b"):
            (path / f"{name}.gz").write_bytes(content)
        else:
            (path / name).write_bytes(content)
    return path


def idx_header(*shape):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)


def class_folders(path, make):
    """Writes folders of two classes, and by `make` one picture more, x.png."""
    for name in "ab":
        (path / name).mkdir()
        for k in range(6):
            Image.new("L", (4, 4)).save(path / name / f"{k}.png")
    make(path / "b" / "x.png")
    return path


def endless(path):
    path.symlink_to("/dev/zero")
    return path


def pipe(path):
    os.mkfifo(path)
    return path


def socket_at(path):
    before = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)
    return path


def cifar_folder(path, make):
    for name in (*cifar.TRAIN_FILES, cifar.TEST_FILE):
        (path / name).write_bytes(bytes(3073))
    (path / cifar.TRAIN_FILES[2]).unlink()
    make(path / cifar.TRAIN_FILES[2])
    return path


def png(*chunks):
    """Returns a PNG file of 4 x 4 grey pixels with `chunks` (name, content) before them."""
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    made = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return buffer.getvalue()[:33] + made + buffer.getvalue()[33:]


ROW = b"1,2,3,4,5\n"
MILLION = 1_000_000
SPARSE_MAP = b"30 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"

# Name: what makes it in a folder and returns the path to load, words of its refusal.
QUICK = {
    # No files, under the names of files.
    "npz, endless device": (lambda at: endless(at / "a.npz"), REFUSED),
    "csv, endless device": (lambda at: endless(at / "a.csv"), REFUSED),
    "csv in a folder, endless device": (lambda at: endless(at / "train.csv").parent, REFUSED),
    "tar.gz, endless device": (lambda at: endless(at / "a.tar.gz"), REFUSED),
    "idx, endless device": (lambda at: idx_folder(at, train_images=endless), REFUSED),
    "picture, endless device": (lambda at: class_folders(at, endless), REFUSED),
    "npz, pipe": (lambda at: pipe(at / "a.npz"), REFUSED),
    "csv in a folder, pipe": (lambda at: pipe(at / "train.csv").parent, REFUSED),
    "tar.gz, pipe": (lambda at: pipe(at / "a.tar.gz"), REFUSED),
    "idx, pipe": (lambda at: idx_folder(at, test_labels=pipe), REFUSED),
    "picture, pipe": (lambda at: class_folders(at, pipe), REFUSED),
    "cifar batch, pipe": (lambda at: cifar_folder(at, pipe), REFUSED),
    "npz, socket": (lambda at: socket_at(at / "a.npz"), REFUSED),
    "csv, folder": (lambda at: (at / "train.csv").mkdir() or at, "no data set in"),
    # IDX
    "idx, 100 GB": (
        lambda at: idx_folder(at, train_images=lambda path: sparse(path, 10**11, idx_header(9, 2, 2))),
        "header says 9 x 2 x 2 = 36 bytes, file has 99,999,999,984",
    ),
    "idx, too many labels": (
        lambda at: idx_folder(at, train_labels=lambda path: sparse(path, 8 + 600 * MIB, idx_header(600 * MIB))),
        "images are allowed",
    ),
    # .npz
    "npz, header of 1 MiB": (
        lambda at: npz(at / "a.npz", npy("|u1", (6,), 2, MIB), 1), "not a whole .npz file. 1,048,576 bytes"
    ),
    "npz, names of 60 kB": (
        lambda at: zip_of(at / "a.npz", [("n" * 60_000, b"", 0, 0), ("m" * 60_000, b"", 0, 0)]), "lacks x_train"
    ),
    "npz, records": (
        lambda at: npz(at / "a.npz", npy([(f"f{k}", "<i8") for k in range(300)], (6, 2, 2)), 1), "x_train is [('f0'"
    ),
    "npz, 3,000 dimensions": (lambda at: npz(at / "a.npz", npy("|u1", (1,) * 3000) + b"1"), "not a whole .npz file"),
    "npz, nothing of enormous size": (
        lambda at: npz(at / "a.npz", npy("|u1", (0, 10**9, 10**9))), "header says 0 x 1000000000"
    ),
    "npz, a number of 9,000 digits": (
        lambda at: npz(at / "a.npz", npy("|u1", 0).replace(b"0}", b"(" + b"9" * 9000 + b",)}", 1)), "not a whole .npz"
    ),
    "npz, packed by LZMA": (  # which zipfile unpacks all at once
        lambda at: zip_of(at / "a.npz", [(f"{key}.npy", b"\0\0\1\0" * 9, 20, 0) for key in KEYS], method=14),
        "packed by method 14",
    ),
    "npz, encrypted": (
        lambda at: zip_of(at / "a.npz", [(f"{key}.npy", b"1" * 20, 20, 0) for key in KEYS], flags=1), "is encrypted"
    ),
    # CSV
    "csv, a line of 0.9 GB": (lambda at: sparse(at / "a.csv", 900_000_000), "has 900,000,000 bytes"),
    "csv, a line of 0.4 GB": (lambda at: sparse(at / "a.csv", 400_000_000), "line 1 is longer than"),
    "csv, a second line of 0.4 GB": (lambda at: sparse(at / "a.csv", 400_000_000, ROW), "line 2 is longer than"),
    "csv, 100 GB": (lambda at: sparse(at / "a.csv", 10**11, ROW), "has 100,000,000,000 bytes"),
    "csv, a million columns": (lambda at: csv(at / "a.csv", b"1," * MILLION, b"1\n"), "line 1 is longer than"),
    "csv, a header of 30 MB": (lambda at: csv(at / "a.csv", b"label", b",pixel" * 5 * MILLION), "line 1 is longer"),
    "csv, a million digits": (lambda at: csv(at / "a.csv", b"1,", b"9" * MILLION, b",1,1,1\n"), "could not convert"),
    "csv, a quote that never ends": (lambda at: csv(at / "a.csv", b'1,"2', b",3,4,5\n" * 99_999), "line 1 has a quote"),
    "csv, zero bytes": (lambda at: csv(at / "a.csv", b"1,\0,3,4,5\n"), "could not convert"),
    "csv, UTF-16": (lambda at: csv(at / "a.csv", (ROW.decode() * 9).encode("utf-16")), "can't decode"),
    # .tar.gz
    "tar.gz, endless members": (
        lambda at: tar_gz(at / "a.tar.gz", (tar_header() * 2048, 4000)), "more than the 1,000 members allowed"
    ),
    "tar.gz, a pax header of 1 GiB": (
        lambda at: tar_gz(at / "a.tar.gz", tar_header("a", 1 << 30, tarfile.XHDTYPE), (b" " * MIB, 1024)),
        "more than the 671,088,640 bytes allowed",
    ),
    "tar.gz, an endless map of holes": (
        lambda at: tar_gz(
            at / "a.tar.gz", tar_header("p", 44, tarfile.XHDTYPE), SPARSE_MAP.ljust(512, b"\0"),
            tar_header("a", 8 << 30), b"9999999999\n", (b"1\n" * (MIB // 2), 2000),
        ),
        "more than the 671,088,640 bytes allowed",
    ),
    "tar.gz, a batch of 600 MiB": (
        lambda at: tar_gz(at / "a.tar.gz", tar_header("test_batch.bin", 600 * MIB), (bytes(MIB), 600)),
        "test_batch.bin has 629,145,600 bytes",
    ),
    # Pictures
    "picture, 1 GiB": (lambda at: class_folders(at, lambda path: sparse(path, 1 << 30)), "has 1,073,741,824 bytes"),
    "picture, GIF of 65,535 x 65,535": (
        lambda at: class_folders(
            at, lambda path: path.write_bytes(b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\1\0\0;")
        ),
        "x.png: ",
    ),
}  # fmt: skip

# Those that take a second to make or to refuse.
LARGE = {
    "idx, two large files": (
        lambda at: idx_folder(
            at,
            train_images=lambda path: sparse(path, 16 + 600 * MIB, idx_header(600, 1024, 1024)),
            test_images=lambda path: sparse(path, 16 + 600 * MIB, idx_header(600, 1024, 1024)),
        ),
        "629,145,600 bytes, 41,943,020 bytes are allowed. A set may have 671,088,640",
    ),
    "idx, large images and odd labels": (
        lambda at: idx_folder(
            at,
            train_images=lambda path: sparse(path, 16 + 600 * MIB, idx_header(600, 1024, 1024)),
            train_labels=idx_header(600) + b"\xff" * 600,
        ),
        "label 255 at index 0",
    ),
    "idx.gz, unpacks to more than its header says": (
        lambda at: idx_folder(at, train_images=gzip_of(idx_header(600, 1024, 1024), (bytes(MIB), 700))),
        "file has more",
    ),
    "npz, four members of 600 MiB": (
        lambda at: npz(at / "a.npz", npy("|u1", (600, 1024, 1024)), 600),
        "629,145,600 bytes, 41,943,040 bytes are allowed",
    ),
    "npz, header of 4 GiB": (
        lambda at: npz(at / "a.npz", npy("|u1", (6,), 2, 2**32 - 1), 1000),
        "not a whole .npz file. 4,294,967,295 bytes",
    ),
    "npz, a million members": (
        lambda at: zip_ended(at / "a.npz", b"", (b"PK\x01\x02" + bytes(24) + b"\1" + bytes(17) + b"a") * MILLION, 9),
        "not a whole .npz file. 47,000,000 bytes",
    ),
    "npz, elements of 1 GB": (lambda at: npz(at / "a.npz", npy("|V1000000000", (6,)), 1000), "x_train is |V1000000000"),
    "npz, too many labels": (
        lambda at: npz(at / "a.npz", y_test=(npy("|u1", (600 * MIB,)), 600)), "images are allowed"
    ),
    "npz, wider numbers than pixels": (
        lambda at: npz(at / "a.npz", x_train=(npy("<i2", (250, 1024, 1024)), 500), y_test=(npy("<f4", (6,)), 1)),
        "y_test is float32",
    ),
    "csv, five million lines": (lambda at: csv(at / "a.csv", b"1,2\n" * 5 * MILLION), "more than 4,194,304 lines"),
    "csv, five million empty lines": (lambda at: csv(at / "a.csv", b"\n" * 5 * MILLION), "more than 4,194,304 lines"),
    "tar.gz, a long name of 500 MiB": (
        lambda at: tar_gz(
            at / "a.tar.gz", tar_header("a", 500 * MIB, tarfile.GNUTYPE_LONGNAME), (b"x" * MIB, 500), tar_header()
        ),
        "not a whole .tar.gz",
    ),
    "picture, texts that unpack to 1 GiB": (
        lambda at: class_folders(
            at,
            lambda path: path.write_bytes(png(*[(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 * MIB), 9))] * 16)),
        ),
        "x.png: cannot be read as an image",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def measured():
    """Returns what loading a path takes, in a process of its own: see measured_load.py."""
    roots = [str(path) for path in map(Path, sys.path) if (path / "mnistfast").is_dir()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("measured_load.py")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, script], env=environment, text=True, **pipes) as server:

        def measure(path):
            print(json.dumps([str(path), PATIENCE]), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield measure
        server.stdin.close()


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_refused(name, tmp_path, measured):
    make, words = (QUICK | LARGE)[name]
    found = measured(make(tmp_path))
    assert found["kind"] == "data", found
    assert words in found["line"]
    assert len(found["line"]) < 1000
    assert found["line"].isprintable()
    assert found["bytes"] < MEMORY, found


@pytest.mark.parametrize("name", ["csv in a folder, pipe", "csv, a line of 0.4 GB", "npz, header of 1 MiB"])
def test_refused_by_a_command(name, tmp_path, capsys):
    make, words = QUICK[name]
    assert train.main(["--data", str(make(tmp_path)), "--out", str(tmp_path / "run"), "--quiet"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("mnistfast: error: ")
    assert words in error
    assert error.count("\n") == 1
