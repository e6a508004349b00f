"""Which launches would serve better than the shipped ones: reads the sweep of `benchmarks/gpu_evidence.py`.

    PYTHONPATH=kernels:. python -m benchmarks.gpu_rank RESULT.json [--top 8]

For each kernel and kind of numbers: the geometric mean, over all layers swept, of a change's time over the shipped
launch's (1 where the shipped launch has that value already); the best launch of each layer; and what one change for
all layers would lose against these.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Change: TypeAlias = tuple[tuple[str, int], ...]  # (factor, value), ...; empty: as shipped
Subject: TypeAlias = str  # a layer in one size and format


@dataclass
class Ranking:
    """One kernel in one kind of numbers.

    Attributes:
        shipped: by layer, the launch that ships.
        ratios: by layer and change of that launch, the time over the shipped launch's; None where it was no good.
    """

    shipped: dict[Subject, Mapping[str, int]] = field(default_factory=dict)
    ratios: dict[Subject, dict[Change, float | None]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in a row of the sweep."""
        subject, change = f"{row['layer']} {row['batch']} {row['layout']}", tuple(row["changed"].items())
        self.ratios.setdefault(subject, {})[change] = row.get("ratio")
        if not change:
            self.shipped[subject] = row["launch"]

    def ratio(self, change: Change, subject: Subject) -> float | None:
        """What the change does to a layer, whose shipped launch may have some of its values already.

        Raises:
            KeyError: it was not tried.
        """
        shipped = self.shipped.get(subject, {})
        return self.ratios[subject][tuple(each for each in change if shipped.get(each[0]) != each[1])]

    def best(self, subject: Subject) -> tuple[Change, float]:
        """The fastest launch of a layer, the shipped one included."""
        good = {change: ratio for change, ratio in self.ratios[subject].items() if ratio is not None}
        return min([((), 1.0), *good.items()], key=lambda each: each[1])

    def ranked(self) -> list[tuple[Change, float, float, int]]:
        """Changes, best first: mean ratio over the layers where it was tried, the worst one, and their number.

        A change that was no good for some layer is left out: it is no rule for all.
        """
        found = []
        for change in dict.fromkeys(change for ratios in self.ratios.values() for change in ratios):
            tried = [ratio for _, ratio in self._tried(change)]
            good = [ratio for ratio in tried if ratio is not None]
            if len(good) == len(tried):
                found.append((change, geometric_mean(good), max(good), len(good)))
        return sorted(found, key=lambda each: each[1])

    def lost(self, change: Change) -> float:
        """By how much slower, in the mean, one change for all layers is than the best launch of each."""
        found = [(ratio or 1.0) / self.best(subject)[1] for subject, ratio in self._tried(change)]
        return geometric_mean(found) - 1

    def _tried(self, change: Change) -> list[tuple[Subject, float | None]]:
        found = []
        for subject in self.ratios:
            with suppress(KeyError):
                found.append((subject, self.ratio(change, subject)))
        return found


def rankings(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Ranking]:
    """By kernel and numbers."""
    found: dict[tuple[str, str], Ranking] = {}
    for row in rows:
        if row["step"] == "sweep" and "changed" in row:
            found.setdefault((row["kernel"], row["numbers"]), Ranking()).add(row)
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
        ranked = ranking.ranked()
        lines.append(f"{kernel}, {numbers}: {len(ranking.ratios)} layers")
        lines += [
            f"  {mean:6.3f} (worst {worst:.3f}, {count} layers)  {words(change)}"
            for change, mean, worst, count in ranked[:top]
        ]
        for subject in ranking.ratios:
            change, ratio = ranking.best(subject)
            lines.append(f"  best for {subject:32} {ratio:6.3f}  {words(change)}")
        rule = next((change for change, *_, count in ranked if count == len(ranking.ratios)), ())
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
