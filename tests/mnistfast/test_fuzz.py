"""10,000 pictures and checkpoints that nobody made by hand: one clear line or an answer, in little memory."""

import subprocess
import sys
from pathlib import Path

import pytest

PICTURES, CHECKPOINTS = 7_000, 3_000
MEMORY = 1 << 30  # bytes, Python's and torch's own included
SECONDS = 60  # ends a file that hangs; the slowest takes well below one

COMMON = """
import random, signal, sys
from mnistfast.errors import MnistfastError

ORDERS = ("big", "little")

def mutate(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(content) or 1)
        kind = rng.randrange(6)
        if kind == 0: content[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 1: content[at:at + 4] = rng.choice((0, 1, 2**31 - 1, 2**32 - 1)).to_bytes(4, rng.choice(ORDERS))
        elif kind == 2: del content[at:at + rng.choice((1, 4, 100))]
        elif kind == 3: content[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        elif kind == 4: content[at:at] = content[max(0, at - 50):at]
        else: del content[at:]
    return bytes(content)

def watch(number, work):
    signal.alarm(int(sys.argv[2]))  # whose default action ends the process: a file that hangs
    try:
        work()
        answered = 1
    except MnistfastError as error:
        assert "\\n" not in str(error), (number, str(error))
        answered = 0
    signal.alarm(0)
    return answered

def report(answered, total):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = int(lines["VmHWM"].split()[0]) * 1024  # ru_maxrss would be at least that of the process it was forked from
    assert peak < int(sys.argv[3]), f"{peak:,} bytes"
    print(answered, total, peak)
"""

PICTURE_SCRIPT = """
import io
import numpy as np
from PIL import Image
from mnistfast.data.photo import View, prepare

rng, noise = random.Random(1), np.random.default_rng(1)
FORMS = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK"), "GIF": ("P", "L"),
         "BMP": ("1", "L", "P", "RGB"), "TIFF": ("1", "L", "RGB", "CMYK", "I;16", "I", "F"), "WEBP": ("RGB", "RGBA"),
         "PPM": ("1", "L", "RGB")}

def generated():
    form = rng.choice(list(FORMS))
    mode = rng.choice(FORMS[form])
    width, height = (int(2 ** rng.uniform(0, 8)) for _ in range(2))
    kind = rng.randrange(4)
    if kind == 0: grey = noise.integers(0, 256, (height, width))
    elif kind == 1: grey = np.full((height, width), rng.randrange(256))
    elif kind == 2: grey = np.add.outer(np.arange(height), np.arange(width)) % 256
    else: grey = 255 * (noise.random((height, width)) < rng.random())
    grey = grey.astype(np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    if mode == "F":
        image = Image.fromarray(noise.normal(0, 10.0 ** rng.randrange(-30, 38), grey.shape).astype(np.float32))
    buffer = io.BytesIO()
    image.save(buffer, form, **({"exif": rng.randbytes(40)} if form in ("JPEG", "WEBP") else {}))
    return buffer.getvalue()

def work(content, size):
    view = prepare(content, size)
    assert isinstance(view, View) and view.pixels.shape == size and view.pixels.dtype == np.uint8

total, answered = int(sys.argv[1]), 0
for number in range(total):
    content = generated()
    if rng.random() < 0.6: content = mutate(content, rng)
    answered += watch(number, lambda: work(content, rng.choice(((1, 28, 28), (1, 28, 28), (3, 32, 32)))))
report(answered, total)
"""

CHECKPOINT_SCRIPT = """
import json, pathlib, struct, tempfile
import numpy as np, torch
from mnistfast.data.photo import View
from mnistfast.runs.checkpoint import CheckpointInfo, save_checkpoint
from mnistfast.runs.integrity import BLANK, seal
from mnistfast.results.predictor import Predictor
from mnistfast.models.zoo import build

torch.set_num_threads(1)
rng = random.Random(2)
folder = pathlib.Path(sys.argv[4])
model = build("lenet5")
save_checkpoint(folder / "good.safetensors", model.state_dict(), CheckpointInfo(
    "lenet5", model.arguments, tuple("0123456789"), (0.13,), (0.31,), model.input_size, 1.2, {"epoch": 1}))
good = (folder / "good.safetensors").read_bytes()
length = struct.unpack("<Q", good[:8])[0]
ODD = [None, True, -1, 0, 1, 10**9, 10**400, 1e308, float("nan"), float("inf"), "", "x", "lenet5", "cnn1", [], [[]], {},
       [0], [1, 28, 28], [3, 32, 32], [1.5, 28, 28], ["a"] * 10, ["a"] * 100_000, {"classes": 10}, {"classes": 10**7},
       {"classes": "10"}, {"classes": 10, "dropout": 7}, {"classes": 10, "dropout": None}, {"classes": 10, "x": 1},
       {"classes": 10, "dropout": 0.0, "old_classes": [10]}, {"classes": 10, "old_classes": 5}]

def with_odd_header():
    header = json.loads(good[8:8 + length])
    meta = header["__metadata__"]
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(meta))
        kind = rng.randrange(8)
        if kind == 0: del meta[name]
        elif kind == 1: meta[name] = mutate(meta[name].encode(), rng).decode("latin-1")
        elif kind == 2: meta[name] = "[" * 100_000
        else: meta[name] = json.dumps(rng.choice(ODD))
        if not meta: break
    if rng.random() < 0.3:
        name = rng.choice([key for key in header if key != "__metadata__"])
        entry = header[name]
        if rng.random() < 0.5: entry["dtype"] = rng.choice(("F16", "F64", "I64", "BF16", "BOOL", "F8_E4M3", "X"))
        else: entry["shape"] = rng.choice(([], [0], [10**9], entry["shape"][::-1], [-1]))
    if "digest" in meta: meta["digest"] = BLANK.decode()  # the right one, or nothing behind it is tried
    text = json.dumps(header, separators=(",", ":")).encode()
    content = bytearray(struct.pack("<Q", len(text)) + text + good[8 + length:])
    if BLANK in content: seal(memoryview(content), content.index(BLANK))
    return bytes(content)

view = View(np.zeros((1, 28, 28), np.uint8))
def work(path):
    predictor = Predictor(path, "cpu")
    if predictor.info.input_size == (1, 28, 28): predictor.probabilities([view])

total, answered = int(sys.argv[1]), 0
path = folder / "odd.safetensors"
for number in range(total):
    start = good[:8 + length + 64] if rng.random() < 0.3 else good
    path.write_bytes(with_odd_header() if rng.random() < 0.6 else mutate(start, rng) if rng.random() < 0.8 else
                     good[:8] + mutate(good[8:8 + length], rng) + good[8 + length:])
    answered += watch(number, lambda: work(path))
report(answered, total)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("script", "total"), [(PICTURE_SCRIPT, PICTURES), (CHECKPOINT_SCRIPT, CHECKPOINTS)])
def test_odd_files(script: str, total: int, tmp_path: Path) -> None:
    """In a process of its own, whose memory is measured."""
    command = [sys.executable, "-c", COMMON + script, str(total), str(SECONDS), str(MEMORY), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    answered, tried, _ = map(int, done.stdout.split())
    assert tried == total
    assert total / 50 < answered < total * 0.95  # both ways were gone
