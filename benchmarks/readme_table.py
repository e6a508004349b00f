"""Write the README's tables of speeds from the kept results in benchmarks/results.

python -m benchmarks.readme_table
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_summary import summary
from mnistfast.bench import RESULT, TIME_TO
from mnistfast.measure.page import readme

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- benchmarks/readme_table.py writes from here -->", "<!-- to here -->"


def written(text: str, results: Path) -> str:
    """The README's text with the tables of the results between its two marks.

    Raises:
        ValueError: a mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README must have the lines {BEGIN} and {END}")
    cpu, time_to = (_kept(results / "cpu" / name) for name in (RESULT, TIME_TO))
    tables = "\n\n".join([readme(cpu, time_to), *_gpus(results)])
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def _gpus(results: Path) -> Iterator[str]:
    """For each GPU whose result is kept, what it comes to."""
    kept = sorted((results / "gpu").glob("*/evidence.json"))
    for file in kept:
        yield summary(json.loads(file.read_text()), file.parent.relative_to(results.parents[1]))
    if not kept:
        yield "Speed on a GPU: not measured."


def _kept(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else None


if __name__ == "__main__":
    README.write_text(written(README.read_text(), RESULTS))
    print(f"written {README}")
