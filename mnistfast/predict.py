"""`python -m mnistfast.predict IMG|DIR|-`: read photographs and drawings with a trained model."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from mnistfast.errors import DataError
from mnistfast.options import process
from mnistfast.options.commands import PredictOptions
from mnistfast.options.parser import Parser, pick
from mnistfast.report.page import percent
from mnistfast.text import printable, show

if TYPE_CHECKING:
    from mnistfast.results.predictor import Answer, Predictor

STDIN = "-"
VIEW_SUFFIX = ".view.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.run(_predict, argv)


def _predict(argv: Sequence[str]) -> int:
    parser = Parser("mnistfast predict", "Read photographs and drawings with a trained model.", PredictOptions)
    parser.add_argument("pictures", metavar="IMG|DIR|-", nargs="+", help="image files, folders of them, - for stdin")
    given = parser.given(argv)
    options = pick(PredictOptions, given)
    files = find_pictures(given["pictures"])

    from mnistfast.devices import use_threads  # torch comes with it
    from mnistfast.files.atomic import make_folder
    from mnistfast.results.predictor import Predictor

    use_threads(options.threads)
    predictor = Predictor(options.checkpoint, options.device, options.head)
    failures: dict[str, DataError] = {}
    answers = predictor.answer(files, failures, top_k=options.top_k, reject_below=options.reject_below)
    if options.save_view:
        answers = _saving(answers, make_folder(Path(options.save_view)))
    show = _show_json if options.json else _show_csv if options.csv else _show_text
    show(answers, predictor, failures, options)
    if failures:
        raise _summed_up(failures, len(files))
    return 0


def find_pictures(sources: Sequence[str]) -> list[str]:
    """Returns the paths of the pictures in `sources`: files and "-" as named, of a folder what is named like a picture.

    Raises:
        DataError: a folder without pictures.
    """
    from mnistfast.data.picture import SUFFIXES

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


def _saving(answers: Iterator[Answer], folder: Path) -> Iterator[Answer]:
    """Passes `answers` on, having written their views to `folder`. Raises StorageError."""
    taken: set[str] = set()
    for answer in answers:
        _save_view(answer, folder, taken)
        yield answer


def _save_view(answer: Answer, folder: Path, taken: set[str]) -> None:
    """Writes the view of `answer` to `folder` under the name of its picture; `taken` are the names given so far."""
    from mnistfast.data.picture import to_png
    from mnistfast.files.atomic import write_atomic

    stem = "stdin" if answer.file == STDIN else Path(answer.file).stem
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    name = next(name for name in names if name not in taken)  # two folders may hold pictures of one name
    taken.add(name)
    write_atomic(folder / f"{name}{VIEW_SUFFIX}", to_png(answer.view.pixels))


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
    name = printable if sys.stdout.isatty() else str  # a program gets names as they are, a terminal what it can show
    places = range(1, min(options.top_k, len(predictor.info.classes)) + 1)
    named = [f"{column}_{place}" for place in places for column in ("class", "probability")]
    writer.writerow(["file", "label", *named, "rejected", "inverted", "ink", "warnings"])
    for answer in answers:
        ranked = [cell for label, probability in answer.top for cell in (name(label), f"{probability:.6f}")]
        view = answer.view
        notes = [answer.rejected, view.inverted, f"{view.ink:.4f}", "; ".join(view.warnings)]
        writer.writerow([name(answer.file), name(answer.label or ""), *ranked, *notes])
        sys.stdout.flush()


def _show_text(
    answers: Iterable[Answer], predictor: Predictor, failures: dict[str, DataError], options: PredictOptions
) -> None:
    if options.checkpoint is None and not options.quiet:
        show(f"reading with {predictor.path}", sys.stderr)
    for answer in answers:
        show(_line(answer, options.reject_below))


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
