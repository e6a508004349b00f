"""Fine-tuning several times, to tell what is luck: the images, the head and the order are drawn anew each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mnistfast.errors import UsageError
from mnistfast.files.atomic import write_json
from mnistfast.options.commands import RunOptions
from mnistfast.options.finetuning import FinetuneConfig
from mnistfast.report import metrics
from mnistfast.report.page import percent
from mnistfast.report.screen import Screen
from mnistfast.results.finish import tested
from mnistfast.runs.run_folder import CONFIG, DRAWS, RunFolder
from mnistfast.tasks.comparison import Comparison
from mnistfast.tasks.prepared import Prepared
from mnistfast.tasks.run import announce, choose


@dataclass(frozen=True)
class Draws:
    """What several fine-tunings came to, which differ in their seeds.

    Attributes:
        folder: where draws.json is.
        new: the test accuracy of each.
        old: each one's accuracy at the source's task; empty where it is not known.
        test: which images were scored, in words.
        seconds: time spent training, of all.
    """

    folder: Path
    new: list[float]
    old: list[float]
    test: str
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Returns mean and 95 % interval of both, as plain data."""
        found: dict[str, Any] = {"repeats": len(self.new), "test": self.test, "seconds": round(self.seconds, 3)}
        for task, values in (("new", self.new), ("old", self.old)):
            if len(values) >= metrics.LEAST_VALUES:
                mean, interval = metrics.mean_interval(values)
                found[task] = {"mean": mean, "interval": list(interval)}
            elif values:
                found[task] = {"mean": sum(values) / len(values), "interval": None}
        return found


def repeat(
    make: Callable[[FinetuneConfig], tuple[Prepared, Comparison]],
    config: FinetuneConfig,
    options: RunOptions,
    command: str,
    screen: Screen,
) -> Draws:
    """Fine-tunes `config.repeats` times with rising seeds; what is done is on disk after each.

    Args:
        make: prepares one of them.
        config: of the first one.
        options: where to write.
        command: the command line, to be written down.
        screen: what to tell whom.

    Raises:
        MnistfastError: any of its kinds.
    """
    if options.resume is not None or options.tensorboard:
        raise UsageError("--repeats writes accuracies alone", "--resume and --tensorboard are for one run")
    prepared, comparison = make(config)
    done: list[tuple[float, float | None]] = []
    seconds = 0.0
    with RunFolder.create(options.out, prepared.info.model, config.seed, overwrite=options.overwrite) as folder:
        announce(prepared, folder, screen)
        folder.write(folder / CONFIG, prepared.config.to_yaml())
        choose(prepared.trainer, screen)
        chosen = prepared.trainer.chosen  # for all draws, whose calls are alike
        for draw in range(config.repeats):
            if draw:
                prepared, comparison = make(replace(config, seed=config.seed + draw))
            with chosen.in_force():
                for _ in prepared.trainer.run():
                    pass
                done.append(comparison.accuracies(prepared.info))
            seconds += comparison.seconds
            screen.say(f"draw {draw + 1}/{config.repeats}: test accuracy {percent(done[-1][0])}")
            old = [accuracy for _, accuracy in done if accuracy is not None]
            draws = Draws(folder.path, [accuracy for accuracy, _ in done], old, tested(prepared.dataset), seconds)
            accuracies = {"command": command, "new": draws.new, "old": draws.old}
            write_json(folder / DRAWS, draws.summary() | {"accuracies": accuracies}, folder.write)
    return draws
