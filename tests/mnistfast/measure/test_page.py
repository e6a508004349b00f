"""The tables and the pictures of what was measured, from made-up figures."""

import numpy as np
import pytest

from convpool.testing.candidates import PLAIN
from mnistfast.measure import page as bench_page
from mnistfast.measure import plots as bench_plots
from mnistfast.measure.forms import FUSED, FUSED_LAST

SECONDS = {"eager": 4e-3, "eager, channels_last": 3e-3, "pool before ReLU, channels_last": 2e-3, FUSED: 1e-3}
SECONDS |= {FUSED_LAST: 5e-4, "torch.compile of eager": 1.5e-3}


def row(group, name, device="cpu"):
    ours, others = (FUSED, FUSED_LAST), (*PLAIN, "torch.compile of eager")
    return {
        "group": group,
        "name": name,
        "device": device,
        "seconds": {form: {"median": s, "low": 0.9 * s, "high": 1.1 * s, "rounds": 7} for form, s in SECONDS.items()},
        "times_faster": {mine: {other: SECONDS[other] / SECONDS[mine] for other in others} for mine in ours},
        "missing": {"torch.compile of eager, max-autotune": "RuntimeError: no"},
        "kept_bytes": {"eager": 12_345_678, FUSED: 9_876},
        "work": {"flops": 10**7, "bytes": 10**6},
        "bound_seconds": 1e-4,
        "share_of_roofline": {form: 1e-4 / s for form, s in SECONDS.items()},
    }


@pytest.fixture
def result():
    rows = [row("layer, training", "cnn-1"), row("layer, inference", "cnn-1")]
    rows += [row("growth with batch", "1"), row("growth with batch", "64"), row("growth with channels", "8")]
    return {"command": "mnistfast bench", "setting": "one machine", "rows": rows, "wrong": []}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.345, "12.3 s"), (1.0, "1.00 s"), (0.0123, "12.3 ms"), (4.56e-7, "0.46 µs"), (2e-4, "200 µs")],
)
def test_durations_have_three_digits(seconds, text):
    assert bench_page.duration(seconds) == text


def test_replayed_forms_are_compared_with_replayed_ones(result):
    """Where steps are called and replayed; a form that could not be recorded stands in for itself."""
    step = row("training step", "cnn2")
    times = {form: s / 10 for form, s in SECONDS.items() if not form.startswith("torch.compile")}
    step["seconds"] |= {f"{form}, replayed": {"median": s, "low": s, "high": s} for form, s in times.items()}
    everyone = {form: timing["median"] for form, timing in step["seconds"].items()}
    step["times_faster"] = {
        mine: {other: s / everyone[mine] for other, s in everyone.items()} for mine in everyone if FUSED in mine
    }
    unrecorded = {**step, "name": "lenet5", "seconds": {**step["seconds"]}}
    del unrecorded["seconds"]["eager, replayed"]
    page = bench_page.report(result | {"rows": [unrecorded, step]}, {})
    header, _, first, second = [line for line in page.splitlines() if line.startswith("|")]
    assert "| convpool, replayed | convpool, channels_last, replayed | times faster" in header
    assert "| eager, replayed |" in header
    assert "| not measured |" in first
    assert "| 40.00 / 80.00 | 2.00 / 4.00 |" in first
    assert "| 4.00 / 8.00 | 2.00 / 4.00 |" in second
    assert "times faster compare replayed forms" in page
    assert bench_plots.pictures([step])


def test_sizes():
    assert [bench_page.size(n) for n in (999, 1_234, 12_345_678, 2 * 10**9)] == [
        "999 B",
        "1.23 kB",
        "12.3 MB",
        "2.00 GB",
    ]


def test_a_form_that_only_some_groups_have(result):
    """Its column is in their table alone."""
    more = row("layer with batch norm, training", "normed")
    more["seconds"] |= {"pool before ReLU": {"median": 7e-3, "low": 6.3e-3, "high": 7.7e-3, "rounds": 7}}
    result["rows"].append(more)
    page = bench_page.report(result, {})
    assert page.count("| pool before ReLU |") == 1
    assert "7.00 ms (6.30 to 7.70)" in page


def test_the_report_holds_every_figure(result):
    page = bench_page.report(result, {"Roofline": "roofline.png"})
    assert "| cnn-1 | 4.00 ms (3.60 to 4.40) | 3.00 ms (2.70 to 3.30) | 2.00 ms (1.80 to 2.20) |" in page
    assert "| 1.50 ms (1.35 to 1.65) | 1.00 ms (0.90 to 1.10) | 500 µs (450 to 550) | 4.00 / 8.00 |" in page
    assert "not steady" not in page.lower()
    assert "| 4.00 / 8.00 | 1.50 / 3.00 | 12.3 MB / 9.88 kB | 10 % / 20 % |" in page
    assert "![Roofline](roofline.png)" in page
    assert "- torch.compile of eager, max-autotune: RuntimeError: no" in page
    assert page.count("\n## ") == 5
    assert "GPU: not measured" in page


def test_what_an_error_says_is_no_markdown(result):
    result["wrong"] = [{"workload": "layer: a", "why": "<b>\n# no"}]
    result["command"] = "mnistfast bench --only '`'"
    page = bench_page.report(result, {})
    assert "\n- layer: a: &lt;b>\\n# no\n" in page
    assert page.endswith("Again: ``mnistfast bench --only '`'``\n")


def test_a_form_that_took_no_part_was_not_measured(result):
    for each in result["rows"]:
        del each["seconds"]["torch.compile of eager"]
    page = bench_page.report(result, {})
    assert "| 2.00 ms (1.80 to 2.20) | not measured | 1.00 ms (0.90 to 1.10) |" in page
    assert "| 4.00 / 8.00 | 2.00 / 4.00 |" in page  # the best other is torch's own form then


def test_the_readme_says_what_was_not_measured(result):
    nothing = bench_page.readme(None, None)
    assert nothing.count("not measured") == 2
    page = bench_page.readme(result, None)
    (line,) = [line for line in page.splitlines() if "cnn-1" in line]
    assert line.startswith(
        "| layer, training: cnn-1 | 4.00 ms ± 10 % | 1.50 ms ± 10 % (torch.compile of eager) | 1.00 ms"
    )
    assert line.endswith("| 4.00 / 8.00 | 1.50 / 3.00 | 12.3 MB / 9.88 kB |")


def test_the_readme_has_the_time_to_an_accuracy():
    entrant = {"n": 3, "steps": 100, "seconds": {"median": 0.5, "low": 0.4, "high": 0.6}}
    entrant["accuracy"] = {"mean": 0.99012, "low": 0.989, "high": 0.9915}
    slower = entrant | {"seconds": {"median": 3.0, "low": 2.9, "high": 3.1}, "name": "fast on eager"}
    time_to = {"entrants": [entrant | {"name": "ours"}, slower], "training_images": 60_000, "judged_by": "10 images"}
    page = bench_page.readme(None, time_to | {"setting": "one machine", "command": "again"})
    assert "| ours | 0.50 s (0.40 to 0.60) | 1.00 | 99.01 % (98.90 to 99.15) | 3 | 100 |" in page
    assert "| fast on eager | 3.00 s (2.90 to 3.10) | 6.00 |" in page


def test_replayed_steps_have_a_time_without_their_recording():
    called = {
        "name": "a",
        "n": 1,
        "steps": 100,
        "launched": "called",
        "seconds": {"median": 0.5, "low": 0.4, "high": 0.6},
    }
    called |= {"accuracy": {"mean": 0.99, "low": 0.99, "high": 0.99}, "seconds_without_recording": {"median": 0.5}}
    replayed = called | {"launched": "replayed", "seconds_without_recording": {"median": 0.0301}}
    header, rows = bench_page.entrants({"entrants": [replayed, called]})
    assert header[-1] == "replayed: without recording"
    assert [cells[-1] for cells in rows] == ["30.1 ms", "called"]
    assert "replayed: without recording" not in bench_page.entrants({"entrants": [called]})[0]


@pytest.fixture
def shaken(result):
    """The result, the time of `convpool` in one layer and in one size being ± 2504 %."""
    for each in (result["rows"][0], result["rows"][2]):
        each["seconds"][FUSED] |= {"low": 1e-3, "high": 51.08e-3}
        each["times_faster"][FUSED] = dict.fromkeys(each["times_faster"][FUSED])
        each["share_of_roofline"][FUSED] = None
    return result


def test_the_report_gives_no_ratio_of_a_time_that_is_not_steady(shaken):
    page = bench_page.report(shaken, {})
    _, _, first = [line for line in page.splitlines() if line.startswith("|")][:3]
    assert "| 1.00 ms (1.00 to 51.1), not steady | 500 µs (450 to 550) |" in first
    assert first.endswith("| not steady / 8.00 | not steady / 3.00 | 12.3 MB / 9.88 kB | not steady / 20 % |")
    assert "## Not steady, so no ratios" in page
    assert "\n- layer, training: cnn-1: convpool ± 2504 %\n- growth with batch: 1: convpool ± 2504 %\n" in page
    steady = page.partition("## Layer, inference")[2].partition("## Growth")[0]
    assert "| 4.00 / 8.00 | 1.50 / 3.00 |" in steady
    assert "not steady" not in steady


def test_nothing_is_compared_with_a_time_that_is_not_steady(result):
    result["rows"][0]["seconds"]["torch.compile of eager"]["high"] = 1.0
    (_, _, line), *_ = [[line for line in bench_page.report(result, {}).splitlines() if line.startswith("|")][:3]]
    assert "| 4.00 / 8.00 | not steady |" in line


def test_figures_kept_before_times_were_judged_are_judged(result):
    """An older file has a ratio of any times, and says of none that it is not steady."""
    result["rows"][0]["seconds"][FUSED]["high"] = 51.08e-3
    assert result["rows"][0]["times_faster"][FUSED]["eager"] == 4
    assert bench_page.times(result["rows"][0], "eager") == "not steady / 8.00"


def test_the_readme_gives_no_ratio_of_a_time_that_is_not_steady(shaken):
    (line,) = [line for line in bench_page.readme(shaken, None).splitlines() if "cnn-1" in line]
    assert line.endswith("| 1.00 ms ± 2504 %, not steady | not steady / 8.00 | not steady / 3.00 | 12.3 MB / 9.88 kB |")


def test_pictures_show_no_ratio_of_a_time_that_is_not_steady(monkeypatch, shaken):
    monkeypatch.setattr(bench_plots, "png", lambda figure: figure.axes[0])
    speedup, roofline, growth = (axes for _, axes in bench_plots.pictures(shaken["rows"]).values())
    than_eager, _ = speedup.containers
    assert [bar.get_width() for bar in than_eager] == [0, 4]
    assert [text.get_text() for text in speedup.texts] == ["not steady", "4.00", "not steady", "1.50"]
    eager, ours, *_ = (line.get_ydata() for line in roofline.lines)
    assert np.isnan([*eager, *ours]).tolist() == [False, False, True, False]
    assert [text.get_text() for text in roofline.texts] == ["cnn-1, not steady", "cnn-1 (inference)"]
    assert np.isnan(growth.lines[0].get_ydata()).tolist() == [True, False]
    assert [text.get_text() for text in growth.get_xticklabels()] == ["1\nnot steady", "64"]


def test_pictures_of_what_there_is(result):
    drawn = bench_plots.pictures(result["rows"])
    assert [name for name, _ in drawn.values()] == ["speedup.png", "roofline.png", "growth.png"]
    assert all(content.startswith(b"\x89PNG") for _, content in drawn.values())
    assert [name for name, _ in bench_plots.pictures(result["rows"][3:]).values()] == ["growth.png"]
    assert bench_plots.pictures([]) == {}
