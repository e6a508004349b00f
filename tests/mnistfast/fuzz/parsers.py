"""What is fuzzed: the parsers of files that are Python, each as a function of a file's bytes.

A target lets `MnistfastError` pass, which is how a file is refused; whatever else it raises is a finding.
"""

from collections.abc import Callable
from pathlib import Path

from mnistfast.errors import MnistfastError

CORPUS = Path(__file__).with_name("corpus")


def _idx(path: Path) -> None:
    from mnistfast.data.idx import read_idx

    read_idx(path, expect="images")


def _npz(path: Path) -> None:
    from mnistfast.data.npz import read_npz

    read_npz(path)


def _csv(path: Path) -> None:
    from mnistfast.data.csv_files import read_csv

    read_csv(path)


def _tar(path: Path) -> None:
    from mnistfast.data.cifar import read_cifar

    read_cifar(path)


def _checkpoint(path: Path) -> None:
    from mnistfast.runs.checkpoint import load_checkpoint

    load_checkpoint(path)


def _header(path: Path) -> None:
    """Reads the header of a checkpoint from lines of "name=value": JSON within JSON keeps a fuzzer busy in vain."""
    from mnistfast.runs.checkpoint import CheckpointInfo

    lines = path.read_text("utf-8", "replace").splitlines()
    CheckpointInfo.from_header(dict(line.split("=", 1) for line in lines if "=" in line), path)


def _state(path: Path) -> None:
    from mnistfast.runs.state import load_state

    load_state(path)


TARGETS: dict[str, Callable[[Path], None]] = {
    "idx": _idx,
    "idx-gz": _idx,
    "npz": _npz,
    "csv": _csv,
    "tar": _tar,
    "checkpoint": _checkpoint,
    "checkpoint-header": _header,
    "state": _state,
}


def feed(target: str, content: bytes, path: Path) -> str | None:
    """Has the target read `content` as a file at `path`; returns the line that it was refused with, None if read."""
    path.write_bytes(content)
    try:
        TARGETS[target](path)
    except MnistfastError as error:
        line = str(error)
        assert len(line) < 2000, line[:2000]
        assert line.isprintable(), line
        return line
    return None
