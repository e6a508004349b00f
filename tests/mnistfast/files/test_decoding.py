"""One failure for all that decoders raise; what is not the file's fault passes."""

import struct

import pytest

from mnistfast.errors import CheckpointError, DataError, StorageError
from mnistfast.files.decoding import decoding_as


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (struct.error("unpack requires 4 bytes\nand more"), "unpack requires 4 bytes"),
        (EOFError(), "EOFError"),
        (ValueError("x" * 10**6), "x" * 200 + "..."),
        (RuntimeError("PytorchStreamReader failed"), "PytorchStreamReader failed"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("kind", [DataError, CheckpointError])
def test_what_a_decoder_raises_becomes_ours(kind, raised, why):
    with pytest.raises(kind) as caught, decoding_as(kind, "f is damaged", "another file"):
        raise raised
    assert (caught.value.what, caught.value.why, caught.value.fix) == ("f is damaged", why, "another file")
    assert caught.value.__cause__ is raised


def test_a_reason_of_ours_goes_before_the_decoders():
    with (
        pytest.raises(DataError, match=r"f is damaged\. It is no f\. FIX: none"),
        decoding_as(DataError, "f is damaged", "none", "It is no f"),
    ):
        raise ValueError("let the file run code")


@pytest.mark.parametrize(
    "raised", [StorageError("no permission"), MemoryError(), RuntimeError("CUDA out of memory"), KeyboardInterrupt()]
)
def test_what_is_not_the_files_fault_passes(raised):
    with pytest.raises(type(raised)) as caught, decoding_as(DataError, "f is damaged", "another file"):
        raise raised
    assert caught.value is raised
