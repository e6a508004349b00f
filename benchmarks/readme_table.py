"""Write the README's tables of speeds from the kept results in benchmarks/results.

python benchmarks/readme_table.py
"""

import json
from pathlib import Path
from typing import Any

from mnistfast.bench import RESULT, TIME_TO
from mnistfast.report.bench_page import readme

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
    cpu, gpu, time_to = (_kept(results / name) for name in (f"cpu/{RESULT}", f"gpu/{RESULT}", f"cpu/{TIME_TO}"))
    return f"{before}{BEGIN}\n\n{readme(cpu, gpu, time_to)}\n\n{END}{after}"


def _kept(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else None


if __name__ == "__main__":
    README.write_text(written(README.read_text(), RESULTS))
    print(f"written {README}")
