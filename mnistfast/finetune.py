"""`python -m mnistfast.finetune --from CKPT --data NEW`: make a trained model good at a new task."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mnistfast import training_command
from mnistfast.errors import UsageError
from mnistfast.options import process
from mnistfast.options.commands import MergeOptions
from mnistfast.options.finetuning import FinetuneConfig
from mnistfast.report.page import percent
from mnistfast.text import show

if TYPE_CHECKING:
    from mnistfast.results.finish import Outcome
    from mnistfast.tasks.repeat import Draws

PROG = "mnistfast finetune"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return process.run(_finetune, argv)


def _finetune(argv: Sequence[str]) -> int:
    description = "Make a trained model good at a new task, and say what that did."
    flags = training_command.parser(PROG, description, FinetuneConfig, MergeOptions).given(argv)
    if "merge" in flags:
        return _merge(flags)
    config, options = training_command.read(PROG, FinetuneConfig, flags)
    if flags.get("print_config"):
        print(config.to_yaml(), end="")
        return 0
    if options.data_check:
        return training_command.check_data(config, options)

    from mnistfast.report.screen import Screen
    from mnistfast.tasks.finetune import finetune  # torch comes with it
    from mnistfast.tasks.repeat import Draws

    screen = Screen(quiet=options.quiet or options.json)
    found = finetune(config, options, shlex.join([*PROG.split(), *argv]), screen)
    result, lines = _of_draws(found) if isinstance(found, Draws) else _of_run(found)
    if options.json:
        print(json.dumps(result))
    else:
        for line in lines:
            screen.say(line)
    return 0


def _merge(flags: dict[str, Any]) -> int:
    if "source" not in flags or "out" not in flags:
        raise UsageError("--merge needs --from and --out", fix="--from CKPT --merge ADAPTER --out FILE")

    from mnistfast.tasks.merging import merge_adapter

    out = merge_adapter(flags["source"], flags["merge"], flags["out"], overwrite=flags.get("overwrite", False))
    if flags.get("json"):
        print(json.dumps({"written": str(out)}))
    elif not flags.get("quiet"):
        show(f"written       {out}")
    return 0


def _of_run(outcome: Outcome) -> tuple[dict[str, Any], list[str]]:
    """Returns what to print as JSON, and as lines."""
    from mnistfast.report.comparison import comparison_rows
    from mnistfast.runs.checkpoint import BEST
    from mnistfast.runs.run_folder import REPORT

    return {"run": str(outcome.folder), **outcome.comparison, "best": outcome.best}, [
        *(f"{title:<15} {text}" for title, text in comparison_rows(outcome.comparison)),
        f"tested on       {outcome.test}",
        f"best weights    {outcome.folder / BEST}",
        f"report          {outcome.folder / REPORT}",
        f"next            mnistfast evaluate {shlex.quote(str(outcome.folder))}",
    ]


def _of_draws(draws: Draws) -> tuple[dict[str, Any], list[str]]:
    """Returns what to print as JSON, and as lines."""
    from mnistfast.runs.run_folder import DRAWS

    found, lines = draws.summary(), []
    for task in ("new", "old"):
        if task in found:
            text = f"{percent(found[task]['mean'])}, mean of {found['repeats']} draws"
            if found[task]["interval"]:
                low, high = found[task]["interval"]
                text += f" (95 % interval of the mean {100 * low:.2f} to {percent(high)})"
            lines.append(f"{task} accuracy    {text}")
    lines += [
        f"tested on       {draws.test}",
        f"trained in      {draws.seconds:.1f} s",
        f"written         {draws.folder / DRAWS}",
    ]
    return {"run": str(draws.folder), **found, "accuracies": {"new": draws.new, "old": draws.old}}, lines


if __name__ == "__main__":
    sys.exit(main())
