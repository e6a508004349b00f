"""Pages and rankings of a result: what is in them, and what is not."""

from pathlib import Path

import pytest

from benchmarks.gpu_rank import rankings, report
from benchmarks.gpu_steps.counters import METRICS, table
from benchmarks.gpu_steps.result import read
from benchmarks.gpu_summary import summary
from benchmarks.gpu_tables import keep_evidence, markdown


def time(us: float) -> dict:
    return {"us": us, "low": us, "high": us, "n": 5}


SHIPPED = {"a": {"warps": 4, "rows": 32, "columns": 64}, "b": {"warps": 4, "rows": 32, "columns": 32}}


def swept(layer: str, changed: dict, us: float | None, shipped: float = 10.0) -> dict:
    key = {"step": "sweep", "layer": layer, "batch": 128, "numbers": "tf32", "layout": "nchw", "kernel": "weight_grad"}
    found = {"failed": "wrong result"} if us is None else {**time(us), "shipped_us": shipped, "ratio": us / shipped}
    return {**key, "changed": changed, "launch": SHIPPED[layer] | changed, **found}


SWEEP = [
    swept("a", {}, 10),
    swept("a", {"warps": 2}, 5),
    swept("a", {"rows": 16}, 8),
    swept("a", {"rows": 64}, 4),
    swept("a", {"columns": 32}, 9),  # as b is shipped
    swept("b", {}, 10),
    swept("b", {"warps": 2}, 20),
    swept("b", {"rows": 16}, 8),
    swept("b", {"rows": 64}, None),
]
ROWS = [
    {"step": "environment", "what": "versions", "torch": "2.11.0", "triton": "3.6.0", "cudnn": 91900, "python": "3.12"},
    {"step": "environment", "what": "device", "device": "NVIDIA H200", "smi": {"driver_version": "580.1"}},
    {"step": "environment", "what": "peaks", "bf16_tflops": 776.0, "copy_tb_s": 2.6},
    {"step": "environment", "what": "launches", "graph_node": time(1.1), "eager_call": time(11)},
    {
        "step": "layers",
        "layer": "cnn-2",
        "batch": 128,
        "numbers": "tf32",
        "layout": "nchw",
        "fused": {"error": 0.9, "failed": "wrong result"},
        "eager": {"error": 0.0, "train": time(124.2), "infer": time(25.0), "host": time(557.6)},
    },
    {
        "step": "whole_steps",
        "model": "cnn2",
        "batch": 128,
        "numbers": "tf32",
        "fused nchw": {"eager": time(3925.1), "graph": time(248.4)},
    },
    {"step": "mnist", "what": "data", "real": True, "note": "MNIST"},
    {
        "step": "mnist",
        "what": "trainer",
        "model": "fast",
        "backend": "auto",
        "seconds": [1.5, 1.0],
        "steps": [235, 235],
    },
    {"step": "parity", "case": "batch-17", "layout": "nchw", "plan": "split", "numbers": "float16", "ok": False},
    {"step": "parity", "case": "cnn-1", "layout": "nchw", "plan": "split", "numbers": "float16", "ok": True},
    {"step": "host_cost", "part": "op, inference", **time(112.8)},
    {"step": "memcheck", "tool": "memcheck", "ok": True, "status": 0, "tail": "/root/somewhere"},
    {"step": "kernels", "failed": "ended by SIGABRT", "layer": "fast-1", "by": "ours", "log": "/root/somewhere"},
    *SWEEP,
]
ROWS[7]["accuracy"] = [0.99, 0.992]
PREPARED = [
    {"step": "mnist", "what": "prepared", "model": "fast", "form": form, "graph": graph, "numbers": "tf32"}
    | {"seconds": seconds, "accuracy": [0.99], "recording": [0.2], "batch": 256, "steps": 235}
    for form, graph, seconds in (
        ("fused channels_last", "off", [0.5]),
        ("fused nchw", "on", [0.028, 0.029, 0.1]),
        ("eager nchw", "on", [0.2]),
        ("pool_first channels_last", "on", [0.1]),
        ("pool_first channels_last", "off", [0.05]),
    )
]
ROWS += PREPARED
RESULT = {
    "began": "2026-01-02",
    "minutes": 9,
    "finished": True,
    "rehearsal": False,
    "steps": {"layers": {"ended": "out of time", "seconds": 48.0}},
    "rows": ROWS,
}


def test_a_result_becomes_a_page_and_its_rows(tmp_path):
    folder = keep_evidence(RESULT, tmp_path)
    assert folder.name == "nvidia-h200"
    kept = read(folder / "evidence.json")
    assert kept["measured"]
    assert len(kept["rows"]) == len(ROWS)
    page = (folder / "REPORT.md").read_text()
    assert "/root" not in page + (folder / "evidence.json").read_text()  # no path of that machine
    for words in (
        *("# NVIDIA H200", "torch 2.11.0", "Triton 3.6.0", "driver 580.1", "2026-01-02"),
        *("out of time", "- kernels: fast-1: ended by SIGABRT", "cnn-2", "124.2", "failed", "3925.1", "248.4"),
        "| trainer |  | fast | auto |  | 235 |  | 2 | 1.2500 | 1.0000 |  | 99.10% |",
        "| prepared | on | fast | fused nchw | 256 | 235 | tf32 | 3 | 0.0290 | 0.0280 | 0.2000 | 99.00% |",
        "| split | float16 | 2 | 1 |",
        *("112.8", "no errors", "| a | 128 | tf32 | nchw | weight_grad | 5 | 0 | 10.0 | 4 | 0.400 | rows 64 |"),
    ):
        assert words in page


def test_the_summary_compares_trainings_whose_steps_are_replayed():
    words = (
        "with `fast` in 235 replayed steps of 256, from images on the GPU and a recorded step to final weights, takes "
        "29 ms (mean accuracy 99.00%, n = 3), with the best of torch's forms 100 ms"
    )
    assert words in summary(RESULT, Path())
    assert "Learning MNIST" not in summary({**RESULT, "rows": [*ROWS[:-5], PREPARED[1]]}, Path())


def test_numbers_stand_to_the_right():
    assert markdown(("a", "b"), [("x", 1.5), ("y", "")]).splitlines()[1] == "| --- | ---: |"


def test_launches_are_ranked_by_their_mean_over_all_layers():
    ranking = rankings(ROWS)["weight_grad", "tf32"]
    ranked = {change: (mean, worst, count) for change, mean, worst, count in ranking.ranked()}
    assert next(iter(ranked)) == (("rows", 16),)
    assert (("rows", 64),) not in ranked  # it fails for one of them
    assert ranked[(("rows", 16),)] == (pytest.approx(0.8), 0.8, 2)
    assert ranked[(("columns", 32),)] == (pytest.approx(0.9**0.5), 1.0, 2)
    assert ranking.best("a 128 nchw") == ((("rows", 64),), 0.4)
    assert ranking.best("b 128 nchw") == ((("rows", 16),), 0.8)
    assert ranking.lost((("rows", 16),)) == pytest.approx(2**0.5 - 1)  # 2 on the one layer, 1 on the other
    text = report(ROWS, 3)
    assert "one rule for all, rows 16, loses 41.4%" in text
    assert report([], 3) == "no sweep in this result"


def test_counters_are_read_from_what_the_profiler_prints():
    names = ["ID", "Kernel Name", "Grid Size", *METRICS.values()]
    units = [""] * 3 + ["ns"] * len(METRICS)
    launch = ["0", "forward_dot", "(100, 1, 1)", "13,792", *["1.5"] * (len(METRICS) - 2), "n/a"]
    lines = ["==PROF== Connected", *(",".join(f'"{cell}"' for cell in line) for line in (names, units, launch))]
    (found,) = table(lines)
    assert found["kernel"] == "forward_dot"
    assert found["ns"] == 13792
    assert found[[*METRICS][-1]] == "n/a"
    assert table([]) == []
