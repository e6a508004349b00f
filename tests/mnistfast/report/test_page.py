"""The report says what the figures say."""

import pytest
import torch

from mnistfast.report import page
from mnistfast.report.metrics import score


@pytest.fixture
def scores():
    logits = torch.eye(4)[[0, 1, 2, 3, 0]] * 3
    return score(logits, torch.tensor([0, 1, 2, 3, 3]), ("t-shirt", "bag", "coat", "boot"), 1.5)


def test_report(scores):
    text = page.report("run 7", scores, "the 5 test images of x", {"model": "cnn2"}, {"lr": 0.5}, "mnistfast train")
    assert text.startswith(
        "# run 7\n\n**Test accuracy 80.00 % (95 % interval 37.55 to 96.38 %, n = 5)** on the 5 test images of x."
    )
    assert "| boot | 100.00 % | 50.00 % | 66.67 % | 2 |" in text
    assert "| calibrated (temperature 1.500) | " in text
    assert "| model | cnn2 |" in text
    assert "| lr | 0.5 |" in text
    assert text.endswith("Again: `mnistfast train`\n")
    for picture in ("curves.png", "confusion.png", "errors.png"):
        assert f"]({picture})" in text


def test_report_of_probabilities_that_nothing_was_held_out_to_calibrate(scores):
    text = page.report("run 7", scores | {"temperature": 1.0}, "x", {}, {}, "mnistfast train")
    assert "No validation images were held out" in text
    assert "temperature" not in text


def test_lines(scores):
    lines = page.class_lines(scores)
    assert lines[0].split() == ["class", "precision", "recall", "F1", "images"]
    assert lines[1].split() == ["t-shirt", "50.00", "%", "100.00", "%", "66.67", "%", "1"]
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("batch_size [0.9, 0.999] 5e-4, 28 x 28 (95 %) #3 a & b - c: d_e.", None),
        ("a|b", "a\\|b"),
        ("a\\|b", "a\\\\\\|b"),
        ("C:\\new", None),
        ("`rm`", "\\`rm\\`"),
        ("<script> a<b <!-- &lt; &#60;", "&lt;script> a&lt;b &lt;!-- &amp;lt; &amp;#60;"),
        ("*a* ~b~ $c$", "\\*a\\* \\~b\\~ \\$c\\$"),
        ("_a_ b_c __d", "\\_a\\_ b_c \\_\\_d"),
        ("[a](b) ![c](d) [e][f] [g]: h", "[a\\](b) ![c\\](d) [e\\][f] [g\\]: h"),
        ("# a", "\\# a"),
        ("> a", "\\> a"),
        ("a\n# b\x1b", "a\\n# b\\x1b"),
    ],
)
def test_plain(text, escaped):
    assert page.plain(text) == (text if escaped is None else escaped)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("mnistfast train", "`mnistfast train`"),
        ("a `b` c", "``a `b` c``"),
        ("`a``", "``` `a`` ```"),
        ("a|b\n", "`a|b\\n`"),
    ],
)
def test_code(text, span):
    assert page.code(text) == span


def test_a_table_keeps_its_columns():
    lines = page.table(["a|b", "c"], [["d\ne", "|"], ["<", 1]]).splitlines()
    assert lines == ["| a\\|b | c |", "| --- | --- |", "| d\\ne | \\| |", "| &lt; | 1 |"]
