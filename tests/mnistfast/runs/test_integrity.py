"""One changed bit in a file of a run, or a lost end, is noticed; a decoder's error is one line."""

import random

import pytest

from mnistfast import evaluate, train
from mnistfast.errors import CheckpointError, UsageError
from mnistfast.runs.checkpoint import load_checkpoint
from mnistfast.runs.integrity import decoding
from mnistfast.runs.state import load_state

READERS = {"best.safetensors": load_checkpoint, "last.safetensors": load_checkpoint, "state.pt": load_state}


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def places(content):
    """Returns where the digest is, and where what makes it one is named."""
    at = content.index(b"sha256:")
    return [*range(at - 12, at + 71), *range(12)]


@pytest.mark.parametrize("name", READERS)
def test_flipped_bits_of_header_digest_and_content(trained, name):
    path, chance = trained / name, random.Random(name)
    whole = path.read_bytes()
    bits = [8 * byte + chance.randrange(8) for byte in places(whole)]
    bits += [chance.randrange(8 * len(whole)) for _ in range(30)]
    for bit in bits:
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(CheckpointError, match=path.name):
            READERS[name](path)
    path.write_bytes(whole)
    READERS[name](path)


@pytest.mark.parametrize("name", READERS)
def test_lost_ends(trained, name):
    path, chance = trained / name, random.Random(name)
    whole = path.read_bytes()
    lengths = {*range(len(whole) - 90, len(whole)), *range(20), *chance.sample(range(len(whole)), 30)}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=path.name):
            READERS[name](path)


@pytest.mark.slow
def test_six_hundred_flipped_bits(trained, tmp_path, capsys):
    """Uniform over the three files, by the commands that a user would type."""
    chance = random.Random(0)
    contents = {name: (trained / name).read_bytes() for name in READERS}
    names, sizes = list(contents), [len(content) for content in contents.values()]
    for _ in range(600):
        [name] = chance.choices(names, sizes)
        content = contents[name]
        bit = chance.randrange(8 * len(content))
        path = trained / name
        path.write_bytes(flipped(content, bit))
        if name == "state.pt":
            code = train.main(["--resume", str(trained)])
        else:
            code = evaluate.main([str(path), "--out", str(tmp_path / "scores")])
        path.write_bytes(content)
        assert code in (2, 4), (name, bit)
        error = capsys.readouterr().err
        assert (str(path) in error, error.count("\n")) == (True, 1), error
    assert train.main(["--resume", str(trained), "--quiet"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_every_lost_end(trained, name):
    """One in 29, which is no multiple of anything in these files; all of them take minutes."""
    path = trained / name
    for length in range(path.stat().st_size - 1, -1, -29):
        with open(path, "r+b") as file:
            file.truncate(length)
        with pytest.raises(CheckpointError, match=path.name):
            READERS[name](path)


def test_decoders_errors_become_one_line(tmp_path):
    for error, words in (
        (ValueError("odd\nlines"), "odd"), (ZeroDivisionError(), "ZeroDivisionError"), (RecursionError("deep"), "deep"),
        (KeyError("x" * 5000), "'xxx"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=f"is damaged. {words}") as caught, decoding(tmp_path):
            raise error
        assert len(str(caught.value)) < 500 + len(str(tmp_path))
    for error in (MemoryError(), UsageError("own"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(error)) as caught, decoding(tmp_path):
            raise error
        assert caught.value is error
