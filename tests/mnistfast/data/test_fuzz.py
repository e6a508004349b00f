"""Damaged files of every format: each is read or refused with one line; none hangs, crashes or takes memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = 100_000
PROCESSES = 2

FUZZ = r'''
import gzip, io, os, random, resource, signal, struct, sys, tarfile, tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from mnistfast.data.cifar import TEST_FILE, TRAIN_FILES, read_cifar
from mnistfast.data.csv_files import read_csv
from mnistfast.data.idx import header, read_idx
from mnistfast.data.images import _read_image
from mnistfast.data.npz import read_npz
from mnistfast.errors import MnistfastError

seed, count = int(sys.argv[1]), int(sys.argv[2])
rng, noise = random.Random(seed), np.random.default_rng(seed)


class Hang(BaseException):
    """A file took longer than ten seconds."""


def alarm(signum, frame):
    raise Hang


def picture(form, mode):
    buffer = io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (9, 9, 3), np.uint8)).convert(mode).save(buffer, form)
    return buffer.getvalue()


def npz(save):
    buffer = io.BytesIO()
    images, labels = noise.integers(0, 256, (6, 5, 5), np.uint8), np.arange(6)
    save(buffer, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return buffer.getvalue()


def cifar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in (*TRAIN_FILES, TEST_FILE):
            member = tarfile.TarInfo(name)
            member.size = 3073
            archive.addfile(member, io.BytesIO(bytes(3073)))
    return buffer.getvalue()


def image(path):
    _read_image(path, resize=8, gray=False)


images, labels = (noise.integers(0, 10, shape, np.uint8) for shape in ((5, 6, 7), (40,)))
idx = {kind: header(array) + array.tobytes() for kind, array in (("images", images), ("labels", labels))}
table = "\n".join(",".join(map(str, row)) for row in noise.integers(0, 10, (12, 26)))
CASES = [
    ("idx", idx["images"], lambda path: read_idx(path, expect="images")),
    ("idx", idx["labels"], lambda path: read_idx(path, expect="labels")),
    ("gz", gzip.compress(idx["images"]), lambda path: read_idx(path, expect="images")),
    ("gz", gzip.compress(idx["labels"]), lambda path: read_idx(path, expect="labels")),
    ("npz", npz(np.savez), read_npz),
    ("npz", npz(np.savez_compressed), read_npz),
    ("csv", table.encode(), read_csv),
    ("csv", ("label," + ",".join(f"pixel{k}" for k in range(25)) + "\n" + table).encode(), read_csv),
    ("tar.gz", cifar(), read_cifar),
    *(
        (form, picture(form, mode), image)
        for form, mode in (
            ("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "L"), ("JPEG", "RGB"), ("BMP", "RGB"), ("GIF", "P"),
            ("PPM", "L"), ("PPM", "RGB"), ("WEBP", "RGB"),
        )
    ),
]
LARGE = [struct.pack(form, value) for form in ("<I", ">I", "<H", ">H") for value in (0, 1, 0x7FFF, 0x8000, 0xFFFF)]
LARGE += [struct.pack(form, value) for form in ("<I", ">I") for value in (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 30)]


def mutated(content):
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(content) + 1)
        if rng.random() < 0.4:
            place = min(place, rng.randrange(64))  # headers are where the numbers are
        kind = rng.randrange(7)
        if kind == 0 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place : place + 4] = rng.randbytes(4)
        elif kind == 2:
            number = rng.choice(LARGE)
            content[place : place + len(number)] = number
        elif kind == 3:
            del content[place:]
        elif kind == 4:
            del content[place : place + rng.randrange(1, 16)]
        elif kind == 5:
            content[place:place] = content[: rng.randrange(1, 64)]
        else:
            other = rng.choice(CASES)[1]
            content[place:] = other[rng.randrange(len(other)) :]
    return bytes(content)


signal.signal(signal.SIGALRM, alarm)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))  # what is read, and 1 GiB in all
read = dict.fromkeys((name for name, _, _ in CASES), 0)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "file"
    for number in range(count):
        name, content, reader = rng.choice(CASES)
        damaged = mutated(content)
        path.write_bytes(damaged)
        signal.setitimer(signal.ITIMER_REAL, 10)
        try:
            reader(path)
            read[name] += 1
        except MnistfastError as error:
            assert "\n" not in str(error), str(error)
        except BaseException:
            print(f"seed {seed}, file {number}, {name}: {damaged.hex()}", flush=True)
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
print(f"seed {seed}: {count} files, of them read: {read}")
'''


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is set as Linux has it")
def test_damaged_files(tmp_path):
    seeds = [int.from_bytes(os.urandom(4)) for _ in range(PROCESSES)]
    print(f"seeds {seeds}")
    roots = [str(path) for path in map(Path, sys.path) if (path / "mnistfast").is_dir()]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(roots),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    environment |= {"TMPDIR": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", FUZZ, str(seed), str(FILES // PROCESSES)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for seed in seeds
    ]  # fmt: skip
    said = [process.communicate()[0] for process in running]
    print("\n".join(said))
    assert [process.returncode for process in running] == [0] * PROCESSES, "\n".join(said)[-3000:]
