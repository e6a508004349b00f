"""A child's side: takes steps row by row and tells its parent, down a pipe, before and after each row."""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from benchmarks.gpu_steps.table import Step, box

GPU_LOST = 3  # exit status


def end_with_parent() -> None:
    """End this process when its standard input is closed: the parent that holds it is gone."""

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock this thread would still hold when Python ends
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(argument: str) -> None:
    """Take the steps of an order by `children.Run`."""
    end_with_parent()
    order = json.loads(argument)
    with os.fdopen(order["fd"], "w") as pipe:

        def tell(said: str, **more: Any) -> None:
            print(json.dumps({"said": said, **more}, default=str), file=pipe, flush=True)

        from benchmarks.gpu_steps.subjects import Bench  # which takes seconds: now that the pipe is held

        setting = order["setting"]
        bench = Bench(setting["device"], setting["data"])
        bench.settle()
        steps = [Step(**step) for step in order["steps"]]
        for n, step in enumerate(steps):
            resumed = n == 0 and order["deadline"] is not None
            now = time.monotonic()
            deadline = order["deadline"] if resumed else now + box(step, steps[n + 1 :], setting["until"] - now)
            tell("step", deadline=deadline)
            try:
                rows = _rows(step, bench)
                for _ in range(order["row"] if resumed else 0):
                    next(rows, None)
                how = "done"
                for key, find in rows:
                    if time.monotonic() > deadline:
                        how = "out of time"
                        break
                    tell("row", key=key)
                    row, usable = _found(key, find)
                    tell("found", row=row)
                    if not usable:
                        sys.exit(GPU_LOST)
            except Exception as error:
                traceback.print_exc()
                how = _words(error)
            tell("end", how=how)


def _rows(step: Step, bench: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    module, _, function = step.rows.partition(":")
    return iter(getattr(import_module(module), function)(bench))


def _found(key: dict[str, Any], find: Any) -> tuple[dict[str, Any], bool]:
    """The row with what was found, or why nothing was; and whether the GPU still serves this process."""
    began = time.perf_counter()
    try:
        row, usable = {**key, **find()}, True
    except Exception as error:
        from convpool.testing.isolated import gpu_is_lost

        traceback.print_exc()
        row, usable = {**key, "failed": _words(error)}, not gpu_is_lost()
    return row | {"took_s": round(time.perf_counter() - began, 2)}, usable


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:400]}"


if __name__ == "__main__":
    main(sys.argv[1])
