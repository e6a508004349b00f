"""How tables about GPUs are kept: JSON with a row a line, and Markdown to read.

    PYTHONPATH=kernels:. python -m benchmarks.gpu_tables RESULT.json [--out FOLDER]

makes pages of what `benchmarks/gpu_evidence.py` found: FOLDER/<device>/evidence.json and REPORT.md.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeAlias

KEPT = Path(__file__).parent / "results" / "gpu"
Found: TypeAlias = dict[str, Any]  # a row of the result

# What children and tools printed, with the paths of the machine: of no use to others.
_UNKEPT = ("log", "tail", "errors", "took_s")


def keep(folder: Path, name: str, table: list[dict[str, Any]], markdown: str) -> None:
    """Write FOLDER/NAME.json, which says that nothing was measured and by which Triton it was compiled, and NAME.md."""
    import triton

    folder.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"measured": False, "triton": triton.__version__})
    (folder / f"{name}.json").write_text(_a_row_a_line(head, table))
    (folder / f"{name}.md").write_text(markdown)


def keep_evidence(result: dict[str, Any], folder: Path) -> Path:
    """Write FOLDER/<device>/evidence.json and REPORT.md of a result, and return that folder."""
    rows = [{key: value for key, value in row.items() if key not in _UNKEPT} for row in result["rows"]]
    evidence = Evidence({**result, "rows": rows})
    folder = folder / re.sub(r"[^a-z0-9]+", "-", evidence.device.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"measured": True, **{key: value for key, value in result.items() if key != "rows"}})
    (folder / "evidence.json").write_text(_a_row_a_line(head, rows))
    (folder / "REPORT.md").write_text(evidence.page())
    return folder


def _a_row_a_line(head: str, rows: Iterable[Found]) -> str:
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f'{head[:-1]}, "rows": [\n{lines}\n]}}\n'


def markdown(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table; numbers to the right."""
    lines = [*lines]
    right = [bool(lines) and all(_is_number(line[n]) for line in lines) for n in range(len(head))]
    rule = ["---:" if each else "---" for each in right]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, rule, *lines))


def _is_number(cell: object) -> bool:
    return re.fullmatch(r"[-+]?[\d.,]*( .*)?", str(cell)) is not None


class Evidence:
    """What a result says, as a page.

    Attributes:
        device: the GPU's name.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        self._result, self._rows = result, result["rows"]
        self.device = self._about("device").get("device", "unknown device")

    def page(self) -> str:
        """Markdown: what it holds for, then a section for each step that found something."""
        sections: dict[str, Callable[[list[Found]], str]] = {
            "layers": _layers,
            "whole_steps": _whole_steps,
            "mnist": _mnist,
            "parity": _parity,
            "more_parity": _parity,
            "host_cost": _host_cost,
            "kernels": _kernels,
            "sweep": _sweep,
            "counters": _counters,
            "memcheck": _memcheck,
            "compiled": _compiled,
        }
        parts = [self._top(), self._how_it_went()]
        for step, section in sections.items():
            if rows := [row for row in self._rows if row["step"] == step]:
                title = "MNIST" if step == "mnist" else step.replace("_", " ").capitalize()
                parts.append(f"## {title}\n\n{section(rows)}")
        return "\n\n".join(parts) + "\n"

    def _about(self, what: str) -> Found:
        return next((row for row in self._rows if row["step"] == "environment" and row.get("what") == what), {})

    def _top(self) -> str:
        versions, peaks, launches = self._about("versions"), self._about("peaks"), self._about("launches")
        driver = self._about("device").get("smi", {}).get("driver_version", "?")
        lines = [
            f"# {self.device}",
            f"{self._result.get('began', '')}: torch {versions.get('torch')}, Triton {versions.get('triton')}, "
            f"cuDNN {versions.get('cudnn')}, Python {versions.get('python')}, driver {driver}. "
            "By `python -m benchmarks.gpu_evidence`; page by `python -m benchmarks.gpu_tables`.",
        ]
        if self._result.get("rehearsal"):
            lines.append("A rehearsal without a GPU: the figures mean nothing.")
        if "copy_tb_s" in peaks and "graph_node" in launches:
            lines.append(
                f"At best it copies {peaks['copy_tb_s']} TB/s and multiplies at {peaks['bf16_tflops']} TFLOPS in "
                f"bfloat16; the least kernel takes {launches['graph_node']['us']} us as a node of a graph and "
                f"{launches['eager_call']['us']} us as a call. Times are medians in microseconds."
            )
        return "\n\n".join(lines)

    def _how_it_went(self) -> str:
        counts = Counter(row["step"] for row in self._rows)
        failed = Counter(row["step"] for row in self._rows if _failures(row))
        steps = self._result["steps"].items()
        lines = [(name, how["ended"], counts[name], failed[name], how["seconds"]) for name, how in steps]
        table = markdown(("step", "ended", "rows", "of them failed", "s"), lines)
        causes = [f"- {row['step']}: {_key(row)}: {cause}" for row in self._rows for cause in _failures(row)]
        causes = [cause for cause in causes if not cause.startswith("- sweep")]  # most launches tried there are no good
        return "\n\n".join([table, *(["Failed:", "\n".join(causes[:40])] if causes else [])])


def _failures(row: Found) -> list[str]:
    """Why the row, or one of its forms, has no figures."""
    forms = [
        f"{name}: {value['failed']}" for name, value in row.items() if isinstance(value, dict) and "failed" in value
    ]
    return [*([row["failed"]] if "failed" in row else []), *forms]


def _key(row: Found) -> str:
    names = ("layer", "case", "model", "kernel", "what", "part", "tool", "batch", "numbers", "layout", "plan", "form")
    return " ".join(str(row[name]) for name in names if name in row)


def _of(row: Found, *names: str) -> list[Any]:
    return [row.get(name, "") for name in names]


def _cells(row: Found, forms: Sequence[str], whats: Sequence[str]) -> list[str]:
    """Each form's times, or what it has instead."""
    found = [(row.get(form, {}), what) for what in whats for form in forms]
    return [f"{each[what]['us']:.1f}" if what in each else "failed" if "failed" in each else "" for each, what in found]


def _layers(rows: list[Found]) -> str:
    forms, whats = (
        ("fused", "split", "eager", "pool_first"),
        {"train": "training", "infer": "inference", "host": "host"},
    )
    head = ["layer", "batch", "numbers", "layout", *(f"{form}, {what}" for what in whats.values() for form in forms)]
    lines = [[*_of(row, "layer", "batch", "numbers", "layout"), *_cells(row, forms, [*whats])] for row in rows]
    return (
        "Forward and backward (training) and forward (inference) as a replayed graph; host: a call of forward and "
        f"backward with what Python spends on it.\n\n{markdown(head, lines)}"
    )


def _whole_steps(rows: list[Found]) -> str:
    forms = [name for name, value in rows[0].items() if isinstance(value, dict)]
    head = ["model", "batch", "numbers", *(f"{form}, {what}" for what in ("graph", "eager") for form in forms)]
    lines = [[*_of(row, "model", "batch", "numbers"), *_cells(row, forms, ("graph", "eager"))] for row in rows]
    how = "A training step: batch, forward, loss, backward, Adam; as one replayed graph, and launch by launch."
    return f"{how}\n\n{markdown(head, lines)}"


def _mnist(rows: list[Found]) -> str:
    head = ["what", "graph", "model", "by", "batch", "steps", "numbers", "n", "s, median", "s, best", "recording, s"]
    head.append("accuracy, mean")
    note = next((row["note"] for row in rows if "note" in row), "")
    lines = []
    for row in rows:
        if seconds := row.get("seconds"):
            steps = row["steps"] if isinstance(row["steps"], int) else row["steps"][0]
            who = [*_of(row, "what", "graph", "model"), row.get("form", row.get("backend")), *_of(row, "batch"), steps]
            recording = f"{median(row['recording']):.4f}" if "recording" in row else row.get("capture_s", "")
            times = [f"{median(seconds):.4f}", f"{min(seconds):.4f}", recording]
            lines.append([*who, *_of(row, "numbers"), len(seconds), *times, f"{mean(row['accuracy']):.2%}"])
    return (
        f"{note}. Seconds from uint8 images on the host to final weights, a trainer's with its recording of a step; "
        f"prepared: from images on the device and a recorded step.\n\n{markdown(head, lines)}"
    )


def _parity(rows: list[Found]) -> str:
    groups: dict[tuple[str, str], list[Found]] = {}
    for row in rows:
        groups.setdefault((row["plan"], row["numbers"]), []).append(row)
    lines = [(*group, len(checks), sum(not row.get("ok") for row in checks)) for group, checks in groups.items()]
    wrong = [f"- {_key(row)}: {row.get('failed') or _worst(row)}" for row in rows if not row.get("ok")]
    table = markdown(("plan", "numbers", "checks", "not right"), lines)
    return "\n\n".join([table, "\n".join(wrong)] if wrong else [table])


def _worst(row: Found) -> str:
    return "; ".join(f"{data}: {row[data]}" for data in ("integers", "random") if data in row)


def _host_cost(rows: list[Found]) -> str:
    return markdown(("part", "us"), [(row["part"], f"{row['us']:.1f}") for row in rows if "us" in row])


def _kernels(rows: list[Found]) -> str:
    about, facts = ("layer", "batch", "numbers"), ("kernel", "us", "grid", "warps", "registers", "spills", "shared")
    found = [(row, kernel) for row in rows for kernel in row.get("kernels", [])]
    ours = [[*_of(row, *about), *_of(k, *facts)] for row, k in found if row["by"] == "ours"]
    theirs = [[*_of(row, *about), *k] for row, k in found if row["by"] == "vendor"]
    return (
        f"{markdown([*about, *facts], ours)}\n\nWhat torch's own layers launch, pool before ReLU, in a forward and "
        f"backward pass:\n\n{markdown([*about, 'kernel', 'launches', 'us'], theirs)}"
    )


def _sweep(rows: list[Found]) -> str:
    """For each layer and kernel the best launch against the shipped one."""
    groups: dict[tuple[Any, ...], list[Found]] = {}
    for row in rows:
        group = (row["layer"], row["batch"], row["numbers"], row["layout"], row["kernel"])
        groups.setdefault(group, []).append(row)
    lines = []
    for group, tried in groups.items():
        timed = [row for row in tried if "ratio" in row]
        if timed:
            best = min(timed, key=lambda row: row["ratio"])
            change = ", ".join(f"{name} {value}" for name, value in best["changed"].items()) or "as shipped"
            numbers = (len(tried), len(tried) - len(timed), best["shipped_us"], best["us"], f"{best['ratio']:.3f}")
            lines.append((*group, *numbers, change))
    head = (
        "layer",
        "batch",
        "numbers",
        "layout",
        "kernel",
        "tried",
        "no good",
        "shipped, us",
        "best, us",
        "ratio",
        "by",
    )
    return markdown(head, lines)


def _counters(rows: list[Found]) -> str:
    kernels = [{"batch": row["batch"], "numbers": row["numbers"], **k} for row in rows for k in row.get("kernels", [])]
    if not kernels:
        return "; ".join(str(row.get("missing", f"status {row.get('status')}")) for row in rows)
    head = [*kernels[0]]
    return markdown(head, [[kernel.get(name, "") for name in head] for kernel in kernels])


def _memcheck(rows: list[Found]) -> str:
    def verdict(row: Found) -> str:
        return row.get("failed") or row.get("missing") or ("no errors" if row["ok"] else f"status {row['status']}")

    return markdown(("tool", "found"), [(row["tool"], verdict(row)) for row in rows])


def _compiled(rows: list[Found]) -> str:
    head = ["model", "form", "mode", "to compile, s", "step, us"]
    lines = [
        [*_of(row, "model", "form", "mode", "compile_s"), row.get("us", row.get("failed", "")[:80])] for row in rows
    ]
    return markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, default=KEPT, metavar="FOLDER")
    options = parser.parse_args()
    print(f"written {keep_evidence(json.loads(options.result.read_text()), options.out)}")


if __name__ == "__main__":
    main()
