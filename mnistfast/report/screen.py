"""What a command shows while it works: one live line on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm

from mnistfast.report.page import percent
from mnistfast.text import show


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    """Returns a record of metrics.jsonl in words."""
    text = f"epoch {record['epoch']}/{epochs}: loss {record['loss']:.4f}, accuracy {percent(record['accuracy'])}"
    if "val_accuracy" in record:
        text += f"; validation loss {record['val_loss']:.4f}, accuracy {percent(record['val_accuracy'])}"
    return f"{text}; {record['images_per_s']:,.0f} images/s"


class Screen:
    """Says things on stdout unless told to be quiet, and everything to a log as well."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.log: Callable[[str], None] = lambda text: None

    def say(self, text: str) -> None:
        """Prints `text`, one line."""
        self.log(text)
        if not self.quiet:
            show(text)

    def warn(self, text: str) -> None:
        """Prints `text` as a warning, to stderr, quiet or not."""
        self.log(f"warning: {text}")
        show(f"mnistfast: warning: {text}", sys.stderr)

    def progress(self, epochs: int, images: int, done: int) -> Progress:
        """Returns the progress of `epochs` over `images` images each, `done` of all seen already."""
        return Progress(self, epochs, images, done)


class Progress:
    """The live line (epoch, loss, accuracy, images/s, time left), or a plain line an epoch where nobody watches."""

    def __init__(self, screen: Screen, epochs: int, images: int, done: int) -> None:
        self._screen, self._epochs, self._images = screen, epochs, images
        self._live = sys.stdout.isatty() and not screen.quiet
        form = "{desc} {percentage:3.0f}% {bar:20} {rate_fmt}, {remaining} left{postfix}"
        self._bar = tqdm(
            total=epochs * images, initial=done, disable=not self._live, file=sys.stdout, leave=False, bar_format=form,
            unit=" images", unit_scale=True, dynamic_ncols=True,
        )  # fmt: skip
        self._bar.set_description(self._name(done), refresh=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, seen: int, loss: float, accuracy: float) -> None:
        """Notes that `seen` images were seen in all; `loss` and `accuracy` are this epoch's so far."""
        if self._live:
            self._bar.set_description(self._name(min(seen, self._bar.total - 1)), refresh=False)
            self._bar.set_postfix_str(f"loss {loss:.3f}, accuracy {percent(accuracy)}", refresh=False)
            self._bar.update(seen - self._bar.n)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Notes the end of an epoch."""
        line = epoch_line(record, self._epochs)
        if self._live:
            self._screen.log(line)
        else:
            self._screen.say(line)

    def _name(self, seen: int) -> str:
        return f"epoch {seen // self._images + 1}/{self._epochs}"
