"""What fine-tuning did to a model, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mnistfast.report.page import accuracy_line, percent


def comparison_rows(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what finetune.json says of before and after as titles and texts."""
    rows = [("fine-tuned from", f"{comparison['source']}, {comparison['method']}")]
    for task in ("new", "old"):
        if comparison[task]:
            before, after = (comparison[task][when] for when in ("before", "after"))
            then = accuracy_line(after) if after else "no head for it is left"
            rows.append((f"{task} accuracy", f"{percent(before['accuracy'])} before, {then} after"))
    if not comparison["old"]:
        rows.append(("old accuracy", "not known: there is no old task, or its data are not known (--old-data)"))
    share = f"{comparison['trained_parameters']:,} of {comparison['parameters']:,} parameters"
    return [*rows, ("learnt", f"{share} in {comparison['seconds']:.1f} s")]
