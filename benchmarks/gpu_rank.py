"""Which launches would serve better than the shipped ones: reads the sweep of `benchmarks/gpu_evidence.py`.

    PYTHONPATH=kernels:. python -m benchmarks.gpu_rank RESULT.json [--top 8]

For each kernel and kind of numbers: the geometric mean, over all layers swept, of a change's time over the shipped
launch's; the best launch of each layer; and what one change for all layers would lose against these.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Change: TypeAlias = tuple[tuple[str, int], ...]  # (factor, value), ...; empty: as shipped
Subject: TypeAlias = str  # a layer in one size and format


@dataclass
class Ranking:
    """One kernel in one kind of numbers: by change and layer, the time over the shipped launch's."""

    ratios: dict[Change, dict[Subject, float]] = field(default_factory=dict)
    failed: dict[Change, list[Subject]] = field(default_factory=dict)

    @property
    def subjects(self) -> list[Subject]:
        return list(dict.fromkeys(subject for found in self.ratios.values() for subject in found))

    def best(self, subject: Subject) -> tuple[Change, float]:
        """The fastest launch of a layer, the shipped one included."""
        found = {change: ratios[subject] for change, ratios in self.ratios.items() if subject in ratios}
        change = min({(): 1.0} | found, key=lambda each: found.get(each, 1.0))
        return change, found.get(change, 1.0)

    def ranked(self) -> list[tuple[Change, float, float, int]]:
        """Changes, best first: mean ratio over the layers where it could be tried, the worst one, and their number.

        A change that failed for some layer is left out: it is no rule for all.
        """
        found = [
            (change, geometric_mean(ratios.values()), max(ratios.values()), len(ratios))
            for change, ratios in self.ratios.items()
            if change not in self.failed
        ]
        return sorted(found, key=lambda each: each[1])

    def lost(self, change: Change) -> float:
        """By how much slower, in the mean, one change for all layers is than the best launch of each."""
        ratios = self.ratios.get(change, {})
        shares = [ratios.get(subject, 1.0) / self.best(subject)[1] for subject in self.subjects]
        return geometric_mean(shares) - 1


def rankings(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Ranking]:
    """By kernel and numbers."""
    found: dict[tuple[str, str], Ranking] = {}
    for row in rows:
        if row["step"] != "sweep":
            continue
        ranking = found.setdefault((row["kernel"], row["numbers"]), Ranking())
        change, subject = tuple(row["changed"].items()), f"{row['layer']} {row['batch']} {row['layout']}"
        if "ratio" in row:
            ranking.ratios.setdefault(change, {})[subject] = row["ratio"]
        else:
            ranking.failed.setdefault(change, []).append(subject)
    return found


def geometric_mean(values: Iterable[float]) -> float:
    """1 where there is none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else 1.0


def words(change: Change) -> str:
    """A change as it is read."""
    return ", ".join(f"{name} {value}" for name, value in change) or "as shipped"


def report(rows: Iterable[Mapping[str, Any]], top: int) -> str:
    """All rankings, so many changes each."""
    lines = []
    for (kernel, numbers), ranking in rankings(rows).items():
        lines += [
            f"{kernel}, {numbers}: {len(ranking.subjects)} layers, {len(ranking.failed)} changes failed somewhere"
        ]
        ranked = ranking.ranked()
        lines += [
            f"  {mean:6.3f} (worst {worst:.3f}, {count} layers)  {words(change)}"
            for change, mean, worst, count in ranked[:top]
        ]
        for subject in ranking.subjects:
            change, ratio = ranking.best(subject)
            lines.append(f"  best for {subject:32} {ratio:6.3f}  {words(change)}")
        everywhere = [each for each in ranked if each[3] == len(ranking.subjects)]
        rule = everywhere[0][0] if everywhere else ()
        lines.append(f"  one rule for all, {words(rule)}, loses {ranking.lost(rule):.1%} against these,")
        lines.append(f"  the shipped launches lose {ranking.lost(()):.1%}")
        lines.append("")
    return "\n".join(lines) or "no sweep in this result"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--top", type=int, default=8)
    options = parser.parse_args()
    print(report(json.loads(options.result.read_text())["rows"], options.top))


if __name__ == "__main__":
    main()
