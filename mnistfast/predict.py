"""`python -m mnistfast.predict IMG|DIR|-`: read photographs and drawings with a trained model."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnistfast import cli
from mnistfast.config import Parser, PredictOptions, pick
from mnistfast.errors import DataError
from mnistfast.report.page import percent

if TYPE_CHECKING:
    from mnistfast.data.photo import View

STDIN = "-"
VIEW_SUFFIX = ".view.png"
BATCH = 256  # pictures read before the model is asked: their views take 200 KB


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says of one picture.

    Attributes:
        file: the picture's path, or "-".
        top: the likeliest classes, the best first, with their calibrated probabilities.
        rejected: the best one is less probable than was asked for.
        view: what the model saw.
    """

    file: str
    top: list[tuple[str, float]]
    rejected: bool
    view: View

    @property
    def label(self) -> str | None:
        """The best class, None where it was rejected."""
        return None if self.rejected else self.top[0][0]

    def to_dict(self) -> dict[str, Any]:
        """Returns the answer as plain values, the view's pixels left out."""
        return {
            "file": self.file,
            "label": self.label,
            "probability": self.top[0][1],
            "top": [{"label": label, "probability": probability} for label, probability in self.top],
            "rejected": self.rejected,
            "inverted": self.view.inverted,
            "ink": self.view.ink,
            "untouched": self.view.untouched,
            "warnings": list(self.view.warnings),
        }


class Predictor:
    """A checkpoint that answers pictures.

    Attributes:
        path: the checkpoint.
        info: its header.
    """

    def __init__(self, checkpoint: str | os.PathLike[str] | None = None, device: str = "auto") -> None:
        """Loads `checkpoint`, a file or a run's folder; None is the newest run under `runs`.

        Raises:
            CheckpointError: missing, damaged or foreign checkpoint.
            MnistfastError: device errors.
        """
        from mnistfast.engine.checkpoint import find_checkpoint, load_checkpoint, newest_checkpoint
        from mnistfast.engine.devices import choose_device

        self._device = choose_device(device)
        self.path = newest_checkpoint() if checkpoint is None else find_checkpoint(checkpoint)
        self._model, self.info = load_checkpoint(self.path, self._device)

    def view(self, content: bytes) -> View:
        """Returns what the model sees of the image file `content`. Raises DataError."""
        from mnistfast.data.photo import prepare

        return prepare(content, self.info.input_size)

    def probabilities(self, views: Sequence[View]) -> list[list[float]]:
        """Returns the calibrated probability of each class for each view (at least one)."""
        import numpy as np

        from mnistfast.data.datasets import Split
        from mnistfast.data.loader import DeviceData
        from mnistfast.engine.trainer import predict

        split = Split(np.stack([view.pixels for view in views]), np.zeros(len(views), np.int64))
        logits = predict(self._model, DeviceData(split, self._device, self.info.mean, self.info.std))
        return (logits.double() / self.info.temperature).softmax(1).tolist()

    def answer(
        self, files: Iterable[str], failures: dict[str, DataError], *, top_k: int = 3, reject_below: float = 0.0
    ) -> Iterator[Answer]:
        """Yields an answer for each picture of `files` in their order.

        Args:
            files: paths, "-" is standard input. Read as answers are taken, some at a time.
            failures: receives why a picture could not be read, by its path.
            top_k: how many classes an answer names at most.
            reject_below: answers less probable than this are marked as rejected.
        """
        files = iter(files)
        while some := list(islice(files, BATCH)):
            views = {}
            for file in some:
                try:
                    views[file] = self.view(_read(file))
                except DataError as error:
                    failures[file] = error
            for (file, view), row in zip(views.items(), self.probabilities([*views.values()]) if views else []):
                ranked = sorted(zip(self.info.classes, row, strict=True), key=lambda pair: -pair[1])
                yield Answer(file, ranked[:top_k], ranked[0][1] < reject_below, view)


def find_pictures(sources: Sequence[str]) -> list[str]:
    """Returns the paths of the pictures in `sources`: files as named, of a folder those whose name says so, "-" as it is.

    Raises:
        DataError: a folder without pictures.
    """
    from mnistfast.data.photo import SUFFIXES

    found: dict[str, None] = {}  # once each, in order
    for source in sources:
        if source == STDIN or not os.path.isdir(source):
            found[source] = None
            continue
        inside = sorted(
            str(path)
            for path in Path(source).rglob("*")
            if path.name.lower().endswith(SUFFIXES) and not path.name.endswith(VIEW_SUFFIX) and path.is_file()
        )
        if not inside:
            raise DataError(f"no pictures in {source}", f"Looked for {', '.join(SUFFIXES)}")
        found.update(dict.fromkeys(inside))
    return list(found)


def _read(file: str) -> bytes:
    from mnistfast.data.photo import MAX_BYTES

    if file == STDIN:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        if not os.path.isfile(file):  # a device or a pipe might never end
            raise DataError("no such file" if not os.path.lexists(file) else "not a regular file")
        with open(file, "rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError((getattr(error, "strerror", None) or str(error)).lower()) from error


class ViewFolder:
    """A folder that takes the views, each under the name of its picture."""

    def __init__(self, folder: str) -> None:
        """Makes the folder. Raises StorageError."""
        from mnistfast.engine.files import make_folder

        self._folder = make_folder(Path(folder))
        self._taken: set[str] = set()

    def save(self, answer: Answer) -> Path:
        """Writes the view of `answer` and returns its path. Raises StorageError."""
        from mnistfast.data.photo import to_png
        from mnistfast.engine.files import write_atomic

        stem = "stdin" if answer.file == STDIN else Path(answer.file).stem
        name, number = stem, 1
        while name in self._taken:  # two folders may hold pictures of one name
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name)
        path = self._folder / f"{name}{VIEW_SUFFIX}"
        write_atomic(path, to_png(answer.view.pixels))
        return path


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return cli.run(_predict, argv)


def _predict(argv: Sequence[str]) -> int:
    parser = Parser("mnistfast predict", "Read photographs and drawings with a trained model.", PredictOptions)
    parser.add_argument("pictures", metavar="IMG|DIR|-", nargs="+", help="image files, folders of them, - for stdin")
    given = parser.given(argv)
    options = pick(PredictOptions, given)
    files = find_pictures(given["pictures"])

    from mnistfast.engine.devices import use_threads

    use_threads(options.threads)
    predictor = Predictor(options.checkpoint, options.device)
    views = ViewFolder(options.save_view) if options.save_view else None
    failures: dict[str, DataError] = {}
    answers = predictor.answer(files, failures, top_k=options.top_k, reject_below=options.reject_below)
    show = _show_json if options.json else _show_csv if options.csv else _show_text

    def saved() -> Iterator[Answer]:
        for answer in answers:
            if views:
                views.save(answer)
            yield answer

    show(saved(), predictor, failures, options)
    if not failures:
        return 0
    if options.json:  # they are in the object
        return DataError.code
    raise _summed_up(failures, len(files))


def _summed_up(failures: dict[str, DataError], total: int) -> DataError:
    if total == 1:
        [(file, error)] = failures.items()
        return DataError(f"{file}: {error.what}", error.why, error.fix)
    named = "; ".join(f"{file} ({error.what})" for file, error in failures.items())
    return DataError(f"{len(failures):,} of {total:,} pictures could not be read: {named}")


def _show_json(
    answers: Iterable[Answer], predictor: Predictor, failures: dict[str, DataError], options: PredictOptions
) -> None:
    found = [answer.to_dict() for answer in answers]
    failed = [{"file": file, "message": str(error)} for file, error in failures.items()]
    print(json.dumps({"checkpoint": str(predictor.path), "answers": found, "failed": failed}))


def _show_csv(
    answers: Iterable[Answer], predictor: Predictor, failures: dict[str, DataError], options: PredictOptions
) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    places = range(1, min(options.top_k, len(predictor.info.classes)) + 1)
    named = [f"{column}_{place}" for place in places for column in ("class", "probability")]
    writer.writerow(["file", "label", *named, "rejected", "inverted", "ink", "warnings"])
    for answer in answers:
        ranked = [cell for label, probability in answer.top for cell in (label, f"{probability:.6f}")]
        view = answer.view
        notes = [answer.rejected, view.inverted, f"{view.ink:.4f}", "; ".join(view.warnings)]
        writer.writerow([answer.file, answer.label or "", *ranked, *notes])
        sys.stdout.flush()


def _show_text(
    answers: Iterable[Answer], predictor: Predictor, failures: dict[str, DataError], options: PredictOptions
) -> None:
    if options.checkpoint is None and not options.quiet:
        print(f"reading with {predictor.path}", file=sys.stderr)
    for answer in answers:
        print(_line(answer, options.reject_below), flush=True)


def _line(answer: Answer, reject_below: float) -> str:
    """Returns `photo.jpg: 3 (99.62 %); 8 0.21 %, 5 0.11 %; dark on light, ink 4 %`."""
    (label, probability), *rest = answer.top
    if answer.rejected:
        head = f"rejected ({label} has {percent(probability)}, less than {percent(reject_below)})"
    else:
        head = f"{label} ({percent(probability)})"
    others = ", ".join(f"{label} {percent(probability)}" for label, probability in rest)
    view = answer.view
    if view.untouched:
        done = "taken as it is"
    else:
        done = f"{'dark on light, inverted' if view.inverted else 'light on dark'}, ink {view.ink:.0%}"
    warned = [f"warning: {warning}" for warning in view.warnings]
    return f"{answer.file}: " + "; ".join(part for part in (head, others, done, *warned) if part)


if __name__ == "__main__":
    sys.exit(main())
