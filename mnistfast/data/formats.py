"""Readers of what users have besides IDX: .npz, CSV, class folders of images, CIFAR-10's binary archive.

Each returns checked arrays or raises `DataError` with one line. Nothing is unpickled, and no header makes a reader
allocate more than `idx.MAX_BYTES`.
"""

from __future__ import annotations

import io
import math
import os
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mnistfast.data.idx import MAX_BYTES
from mnistfast.errors import DataError, StorageError

if TYPE_CHECKING:
    from PIL import Image

Arrays = tuple[np.ndarray, np.ndarray]
"""Images uint8 (N, C, H, W) and labels int64 (N,)."""

CLASSES_MAX = 1000
"""Labels of npz and CSV files go from 0 to below this: more is a column mistaken for the labels."""

SIDE_MAX = 4096
"""Pixels along an image's side that a class folder may have; more would be a photo archive, or a decompression bomb."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp")
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")
_NPZ_KEYS = (("x_train", "y_train"), ("x_test", "y_test"))
_CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
CIFAR_FILES = ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin")
CIFAR_TEST = "test_batch.bin"


# .npz


def read_npz(path: Path) -> tuple[Arrays, Arrays]:
    """Reads train and test from an .npz file with the keys of Keras: x_train, y_train, x_test, y_test.

    Images are whole numbers from 0 to 255, (N, H, W) or (N, H, W, C); labels whole numbers, (N,) or (N, 1).

    Raises:
        DataError: no such file, keys are missing, or the content is damaged, pickled or of another shape.
    """
    with _reading(path) as stream:
        members = _npz_members(path, stream)
    train, test = ((_npz_images(path, x, members[x]), _npz_labels(path, y, members[y])) for x, y in _NPZ_KEYS)
    return train, test


def _npz_members(path: Path, stream: IO[bytes]) -> dict[str, np.ndarray]:
    wanted = [key for pair in _NPZ_KEYS for key in pair]
    try:
        with zipfile.ZipFile(stream) as archive:
            present = [name.removesuffix(".npy") for name in archive.namelist()]
            missing = [key for key in wanted if key not in present]
            if missing:
                what = f"{path}: lacks {', '.join(missing)}; it has {', '.join(present[:8]) or 'nothing'}"
                raise DataError(what, fix=f"save it as numpy.savez(file, {', '.join(f'{key}=...' for key in wanted)})")
            return {key: _npy(path, key, archive) for key in wanted}
    except _DECODER_ERRORS as error:
        raise DataError(f"{path}: not a whole .npz file", _reason(error), "save it again") from error


def _npy(path: Path, key: str, archive: zipfile.ZipFile) -> np.ndarray:
    """Reads one array, never more bytes than its header says; the archive compares the checksum at the end."""
    with archive.open(f"{key}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if dtype.hasobject:
            raise DataError(f"{path}: {key} holds pickled objects: refused", "Loading them can run any code")
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_BYTES or min(shape, default=0) < 0:
            raise DataError(f"{path}: {key} is {shape} of {dtype}: {size:,} bytes, {MAX_BYTES:,} are allowed")
        content = stream.read(size)
        if len(content) < size or stream.read(1):
            raise DataError(f"{path}: {key} is not as long as its header says ({size:,} bytes)", fix="save it again")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _npz_images(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(f"{path}: {key} has shape {array.shape}", "Images are (N, H, W) or (N, H, W, 1 or 3)")
    return np.ascontiguousarray(_bytes(f"{path}: {key}", array).transpose(0, 3, 1, 2))


def _npz_labels(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        why = "Labels are whole numbers, (N,) or (N, 1)"
        raise DataError(f"{path}: {key} has shape {array.shape} of {array.dtype}", why)
    return class_labels(f"{path}: {key}", array)


def _bytes(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise DataError(f"{name} is {array.dtype}", "Pixels are whole numbers from 0 to 255", "save it as uint8")
    if array.dtype != np.uint8 and array.size and not 0 <= array.min() <= array.max() <= 255:
        raise DataError(f"{name} has values from {array.min()} to {array.max()}", "Pixels are from 0 to 255")
    return array.astype(np.uint8, copy=False)


def class_labels(name: str, labels: np.ndarray) -> np.ndarray:
    """Returns whole numbers as int64 labels; refuses those that can name no class, with the index of the first one."""
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES_MAX))
    if len(wrong):
        what = f"{name}: label {labels[wrong[0]]} at index {wrong[0]}"
        raise DataError(what, f"Labels are from 0 to {CLASSES_MAX - 1}", "is it the label's column?")
    return labels.astype(np.int64)


# CSV


def read_csv(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a CSV file in Kaggle's form: a line an image, its label, then its pixels row by row; a header or none.

    Returns:
        Images uint8 (N, 1, H, H) and labels int64 (N,), None where the header has no `label` first (Kaggle's test.csv).

    Raises:
        DataError: no such file, or lines that differ, or numbers that are no pixels or labels.
    """
    with _reading(path) as stream:
        _refuse_long(path, stream)
        first = stream.readline(1 << 16).decode("utf-8", "replace").strip().lstrip("\ufeff").replace('"', "")
        stream.seek(0)
        header = bool(first) and not first[0].isdigit()
        labelled = not header or first.split(",")[0].strip().lower() == "label"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an empty file: said below
                table = np.loadtxt(
                    io.TextIOWrapper(stream, "utf-8-sig"), np.int16, None, ",", skiprows=int(header), ndmin=2
                )
        except (ValueError, OverflowError) as error:  # a text, a number beyond int16, a line of another length
            raise DataError(f"{path}: {_reason(error)}", "Lines are a label and pixels, with commas between") from error
    side = math.isqrt(max(table.shape[1] - labelled, 0))
    if not len(table) or not side or side * side + labelled != table.shape[1]:
        what = f"{path}: {len(table):,} lines of {table.shape[1]} numbers"
        raise DataError(what, "A line is a label and the pixels of a square image, 785 numbers for 28x28")
    images = _bytes(f"{path}: a pixel", table[:, int(labelled) :]).reshape(-1, 1, side, side)
    return np.ascontiguousarray(images), class_labels(str(path), table[:, 0]) if labelled else None


# Class folders


def class_folders(folder: Path) -> list[Path]:
    """Returns the sub-folders of `folder` that hold images directly, in the order of their classes: 2 before 10."""
    found = [path for path in _entries(folder) if path.is_dir() and any(_image_files(path))]
    numbers = all(path.name.isdigit() for path in found)
    return sorted(found, key=lambda path: (int(path.name) if numbers else 0, path.name))


def read_class_folders(folder: Path, classes: Sequence[str], *, resize: int | None, gray: bool) -> Arrays:
    """Reads `folder`/<class>/<image>: one channel when all images are grey or `gray` asks for it, else three.

    Raises:
        DataError: a folder that is no class, an image that cannot be read, sizes that differ without `resize`.
    """
    pictures: list[np.ndarray] = []
    labels: list[int] = []
    sizes: dict[tuple[int, ...], Path] = {}
    for path in class_folders(folder):
        if path.name not in classes:
            raise DataError(f"{path}: no class of the training images is called {path.name}")
        for file in sorted(_image_files(path)):
            picture = _read_image(file, resize=resize, gray=gray)
            sizes.setdefault(picture.shape[:2], file)
            if len(sizes) > 1:
                (first, one), (second, other) = sizes.items()
                what = f"{other} is {second[0]}x{second[1]}, {one} is {first[0]}x{first[1]}"
                raise DataError(what, "Images of one set have one size", "--resize 28")
            pictures.append(picture)
            labels.append(classes.index(path.name))
            if len(pictures) * picture.nbytes > MAX_BYTES:
                raise DataError(f"{folder}: more than {MAX_BYTES:,} bytes of pixels", fix="a smaller --resize")
    colour = any(picture.ndim == 3 for picture in pictures)
    stacked = [_planes(picture, colour) for picture in pictures]
    return np.stack(stacked), np.array(labels, np.int64)


def fit_images(images: np.ndarray, *, resize: int | None, gray: bool) -> np.ndarray:
    """Returns uint8 (N, C, H, W) made grey and resized to `resize` x `resize`, each where asked for and not so yet."""
    to_gray = gray and images.shape[1] == 3
    if not to_gray and resize in (None, images.shape[2]) and resize in (None, images.shape[3]):
        return images
    from PIL import Image

    pictures = (
        np.squeeze(image.transpose(1, 2, 0), 2) if len(image) == 1 else image.transpose(1, 2, 0) for image in images
    )
    fitted = (_fit(Image.fromarray(picture), resize, to_gray) for picture in pictures)
    return np.stack([_planes(picture, images.shape[1] == 3 and not to_gray) for picture in fitted])


def _fit(image: Image.Image, resize: int | None, gray: bool) -> np.ndarray:
    if gray and image.mode != "L":
        image = image.convert("L")
    if resize and image.size != (resize, resize):
        image = image.resize(
            (resize, resize), 2
        )  # BILINEAR: Pillow's is anti-aliased, and adds no light beside strokes
    return np.asarray(image)


def _planes(picture: np.ndarray, colour: bool) -> np.ndarray:
    """Returns (H, W) or (H, W, 3) as (C, H, W)."""
    if picture.ndim == 3:
        return picture.transpose(2, 0, 1)
    return np.repeat(picture[np.newaxis], 3 if colour else 1, 0)


def _read_image(path: Path, *, resize: int | None, gray: bool) -> np.ndarray:
    """Returns (H, W) of a grey image, else (H, W, 3); what is transparent becomes white."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), _reading(path) as stream:
            warnings.simplefilter("ignore")  # of odd metadata and of bombs: their size is looked at here
            # From memory: a file's read(n) allocates n bytes, and in a damaged PNG n is anything up to 4 GiB.
            with Image.open(io.BytesIO(_whole(path, stream)), formats=_IMAGE_FORMATS) as image:
                if max(image.size) > SIDE_MAX:
                    raise DataError(f"{path}: {image.size[0]}x{image.size[1]} pixels, {SIDE_MAX} a side are allowed")
                if image.mode.startswith(("I", "F")):
                    picture = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
                elif image.has_transparency_data:
                    drawn = image.convert("RGBA")
                    picture = Image.alpha_composite(Image.new("RGBA", image.size, "white"), drawn)
                    picture = picture.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
                else:
                    picture = image.convert("L" if image.mode in ("1", "L") else "RGB")
                return _fit(picture, resize, gray)
    except (DataError, StorageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files, SyntaxError among them
        raise DataError(f"{path}: cannot be read as an image", _reason(error), "delete or replace it") from error


def _image_files(folder: Path) -> Iterator[Path]:
    return (
        path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be read", error.strerror or str(error), "check its permissions"
        ) from error


# CIFAR-10


def read_cifar(path: Path) -> tuple[Arrays, Arrays]:
    """Reads CIFAR-10's binary version from its .tar.gz or from the folder that was unpacked of it.

    Raises:
        DataError: batches are missing, damaged or of another length.
    """
    names = [*CIFAR_FILES, CIFAR_TEST]
    batches: dict[str, bytes] = {}
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                with _reading(path / name) as stream:
                    batches[name] = _whole(path / name, stream)
    else:
        batches = _tar_members(path, names)
    missing = [name for name in names if name not in batches]
    if missing:
        raise DataError(f"no CIFAR-10 in {path}: missing: {', '.join(missing)}", fix="fetch the binary version again")
    train = [_cifar_batch(path, name, batches[name]) for name in CIFAR_FILES]
    images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
    return (images, labels), _cifar_batch(path, CIFAR_TEST, batches[CIFAR_TEST])


def _tar_members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with _reading(path) as stream, tarfile.open(fileobj=stream, mode="r:gz") as archive:
            for member in archive:
                if member.size > MAX_BYTES // 4:  # also of those that are skipped: skipping unpacks them
                    raise DataError(f"{path}: {member.name} has {member.size:,} bytes, more than a CIFAR-10 batch")
                name = os.path.basename(member.name)
                if name in names and (opened := archive.extractfile(member)):
                    found[name] = opened.read()
    except _DECODER_ERRORS as error:
        raise DataError(f"{path}: not a whole .tar.gz", _reason(error), "delete it and fetch it again") from error
    return found


def _cifar_batch(path: Path, name: str, content: bytes) -> Arrays:
    if not content or len(content) % _CIFAR_RECORD:
        what = f"{path}: {name} has {len(content):,} bytes, no multiple of {_CIFAR_RECORD:,}"
        raise DataError(what, "An image is a label and 3 x 32 x 32 bytes", "fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


# What all share

# What zipfile, tarfile, gzip and numpy's header parser raise on damaged input.
_DECODER_ERRORS: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError),
    *(ValueError, KeyError, OverflowError, TypeError, SyntaxError, IndexError),
)


class _reading:
    """Opens a file for reading; a file that is not there or refused is a `DataError` or a `StorageError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> IO[bytes]:
        try:
            self._stream = self._path.open("rb")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise DataError(f"{self._path}: no such file", fix="check the path given with --data") from error
        except OSError as error:
            why = error.strerror or str(error)
            raise StorageError(f"{self._path}: cannot be read", why, "check its permissions") from error
        return self._stream

    def __exit__(self, *ended: Any) -> None:
        self._stream.close()


def _whole(path: Path, stream: IO[bytes]) -> bytes:
    _refuse_long(path, stream)
    return stream.read()


def _refuse_long(path: Path, stream: IO[bytes]) -> None:
    size = os.fstat(stream.fileno()).st_size
    if size > MAX_BYTES:
        raise DataError(f"{path}: has {size:,} bytes, {MAX_BYTES:,} are allowed")


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
