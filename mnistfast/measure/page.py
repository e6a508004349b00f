"""What was measured as Markdown: the report of `mnistfast bench`, and the README's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mnistfast.measure import trust
from mnistfast.measure.forms import FUSED, FUSED_LAST, REPLAYED
from mnistfast.report.page import code, percent, plain, table

COMPILED = "torch.compile"
NOT_MEASURED = "not measured"
README_GROUPS = ("layer, training", "layer with batch norm, training", "training step", "inference", "epoch")

_REPLAYS = (
    "Training steps are called one by one, and replayed as a recorded graph where the name says so: times faster "
    "compare replayed forms, and torch.compile's."
)

_UNSTEADY = (
    f"Half the distance between the quartiles of these times is over {100 * trust.LARGEST_SPREAD:.0f} % of the median: "
    "something else took part, and no ratio is made of them."
)

Row = Mapping[str, Any]


def duration(seconds: float) -> str:
    """Returns three digits and a unit: `1.23 ms`."""
    unit, one = _unit(seconds)
    return f"{_digits(seconds / one)} {unit}"


def _unit(seconds: float) -> tuple[str, float]:
    """Returns the unit in which `seconds` is read best, and its seconds."""
    for unit, one in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= one:
            return unit, one
    return "µs", 1e-6


def size(count: int) -> str:
    """Returns bytes in a readable unit: `1.23 MB`."""
    for unit, one in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= one:
            return f"{_digits(count / one)} {unit}"
    return f"{count} B"


def _digits(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def median(row: Row, form: str) -> str:
    """Returns the form's time of a call, with half the distance between its quartiles as a share: `1.23 ms ± 4 %`."""
    timing = row["seconds"].get(form)
    if timing is None:
        return NOT_MEASURED
    return f"{duration(timing['median'])} ± {_share(trust.spread(timing))}{_mark(timing)}"


def quartiles(row: Row, form: str) -> str:
    """Returns the form's time of a call, with its quartiles in the same unit: `1.23 ms (1.18 to 1.28)`."""
    timing = row["seconds"].get(form)
    if timing is None:
        return NOT_MEASURED
    unit, one = _unit(timing["median"])
    middle, low, high = (_digits(timing[name] / one) for name in ("median", "low", "high"))
    return f"{middle} {unit} ({low} to {high}){_mark(timing)}"


def _share(part: float) -> str:
    return f"{100 * part:.0f} %"


def _mark(timing: trust.Timing) -> str:
    return "" if trust.steady(timing) else f", {trust.NOT_STEADY}"


def plain_forms(forms: Iterable[str]) -> list[str]:
    """Returns those of `forms` that are torch's own layers as they are, steps on them called or replayed."""
    return [form for form in forms if not form.startswith((FUSED, COMPILED))]


def launched(row: Row, form: str) -> str:
    """Returns the name of `form` as it is launched best: replayed where that was measured."""
    replayed = form + REPLAYED
    return replayed if replayed in row["seconds"] else form


def eager(row: Row) -> str:
    """Returns the name of the form that most people write, as it is launched best."""
    return launched(row, "eager")


def compiled_form(row: Row) -> str:
    """Returns the name of the fastest form by torch.compile, or "" where there is none."""
    forms = [name for name in row["seconds"] if name.startswith(COMPILED)]
    return min(forms, key=lambda name: row["seconds"][name]["median"], default="")


def best_other(row: Row) -> str:
    """Returns the name of the fastest form that is not ours, torch.compile's included."""
    others = [name for name in row["seconds"] if not name.startswith(FUSED)]
    return min(others, key=lambda name: row["seconds"][name]["median"])


def times(row: Row, other: str) -> str:
    """Returns how often the fused layers, launched best, go into another form's time: in NCHW, and in channels_last."""
    ratios = [trust.times_faster(row["seconds"], launched(row, mine), other) for mine in (FUSED, FUSED_LAST)]
    if ratios == [None, None]:
        return trust.NOT_STEADY
    return " / ".join(trust.NOT_STEADY if ratio is None else f"{ratio:.2f}" for ratio in ratios)


def report(result: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Returns the page of a result of `measure.suite.run`, with pictures: by title, the file beside the page."""
    parts = [
        "# What the fused layers gain",
        plain(result["setting"]) + ".",
        "Medians of interleaved rounds, the quartiles beside them. Every form was found to compute "
        "what torch computes in float64 before it was timed. `convpool` is the fused layer as it comes (NCHW), beside "
        "it in channels_last; times faster are given for both. GPU: " + _gpu_words(result["rows"]) + ".",
    ]
    if any(form.endswith(REPLAYED) for row in result["rows"] for form in row["seconds"]):
        parts.append(_REPLAYS)
    if result["wrong"]:
        lines = [f"- {plain(each['workload'])}: {plain(each['why'])}" for each in result["wrong"]]
        parts += ["## Wrong results, so no speeds", "\n".join(lines)]
    unsteady = trust.unsteady_rows(result["rows"])
    if unsteady:
        lines = [f"- {plain(f'{workload}: {_spreads(forms)}')}" for workload, forms in unsteady.items()]
        parts += ["## Not steady, so no ratios", _UNSTEADY, "\n".join(lines)]
    parts += [f"![{title}]({file})" for title, file in pictures.items()]
    for group in dict.fromkeys(row["group"] for row in result["rows"]):
        parts += [f"## {group.capitalize()}", _group_table([row for row in result["rows"] if row["group"] == group])]
    missing = {f"{form}: {why}" for row in result["rows"] for form, why in row["missing"].items()}
    if missing:
        parts += ["## Not measured", "\n".join(f"- {plain(line)}" for line in sorted(missing))]
    return "\n\n".join([*parts, f"Again: {code(result['command'])}\n"])


def readme(cpu: Mapping[str, Any] | None, time_to: Mapping[str, Any] | None) -> str:
    """Returns the README's tables of a CPU's results; what is not there was not measured, and the tables say so.

    Args:
        cpu: a result of `measure.suite.run`.
        time_to: a result of `measure.time_to.time_to`.
    """
    return "\n\n".join([_readme_speeds(cpu), _readme_times(time_to)])


def _readme_speeds(cpu: Mapping[str, Any] | None) -> str:
    if cpu is None:
        return f"Speed on a CPU: {NOT_MEASURED}."
    header = ["", "eager", "the best other", "convpool", "times faster than eager", "than the best other"]
    header += ["kept for backward, eager / fused"]
    lines = []
    for row in cpu["rows"]:
        if row["group"] not in README_GROUPS:
            continue
        kept = row.get("kept_bytes")
        lines.append(
            [
                f"{row['group']}: {row['name']}",
                median(row, "eager"),
                f"{median(row, best_other(row))} ({best_other(row)})",
                median(row, FUSED),
                times(row, eager(row)),
                times(row, best_other(row)),
                f"{size(kept['eager'])} / {size(kept[FUSED])}" if kept else "",
            ]
        )
    return f"{table(header, lines)}\n\n{plain(cpu['setting'])}. {code(cpu['command'])}"


def _readme_times(time_to: Mapping[str, Any] | None) -> str:
    if time_to is None:
        return f"Time to an accuracy: {NOT_MEASURED}."
    words = f"{time_to['training_images']:,} training images, judged by {time_to['judged_by']}"
    setting, command = plain(time_to["setting"]), code(time_to["command"])
    return f"{table(*entrants(time_to))}\n\n{plain(words)}. {setting}. {command}"


def entrants(time_to: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of a table of the entrants of `measure.time_to`.

    Where steps were replayed, a last column has the median time without their recording.
    """
    header = ["recipe", "median time (range)", "times the first's", "mean accuracy (range)", "seeds", "steps"]
    replayed = [entrant.get("launched") == "replayed" for entrant in time_to["entrants"]]
    header += ["replayed: without recording"] * any(replayed)
    first = time_to["entrants"][0]["seconds"]["median"]
    rows = []
    for entrant, was_replayed in zip(time_to["entrants"], replayed, strict=True):
        seconds, accuracy = entrant["seconds"], entrant["accuracy"]
        rows.append(
            [
                entrant["name"],
                f"{seconds['median']:.2f} s ({seconds['low']:.2f} to {seconds['high']:.2f})",
                f"{seconds['median'] / first:.2f}",
                f"{percent(accuracy['mean'])} ({100 * accuracy['low']:.2f} to {100 * accuracy['high']:.2f})",
                f"{entrant['n']}",
                f"{entrant['steps']}",
            ]
        )
        if any(replayed):
            rows[-1].append(duration(entrant["seconds_without_recording"]["median"]) if was_replayed else "called")
    return header, rows


def _gpu_words(rows: Iterable[Row]) -> str:
    return "measured" if any(row["device"].startswith("cuda") for row in rows) else NOT_MEASURED


def _spreads(forms: Mapping[str, float]) -> str:
    return "; ".join(f"{form} ± {_share(spread)}" for form, spread in forms.items())


def _group_table(rows: Sequence[Row]) -> str:
    forms = dict.fromkeys(form for row in rows for form in row["seconds"])
    plain, ours = plain_forms(forms), [form for form in forms if form.startswith(FUSED)]
    header = ["", *plain, COMPILED, *ours, "times faster than eager", "than the best other"]
    kept, roof = "kept_bytes" in rows[0], "share_of_roofline" in rows[0]
    header += ["kept for backward, eager / fused"] * kept + ["share of the roofline"] * roof
    lines = []
    for row in rows:
        cells = [row["name"], *(quartiles(row, form) for form in plain), quartiles(row, compiled_form(row))]
        cells += [quartiles(row, form) for form in ours] + [times(row, eager(row)), times(row, best_other(row))]
        if kept:
            cells.append(f"{size(row['kept_bytes']['eager'])} / {size(row['kept_bytes'][FUSED])}")
        if roof:
            cells.append(" / ".join(_roofline(row, form) for form in (FUSED, FUSED_LAST)))
        lines.append(cells)
    return table(header, lines)


def _roofline(row: Row, form: str) -> str:
    return _share(row["share_of_roofline"][form]) if trust.steady(row["seconds"][form]) else trust.NOT_STEADY
