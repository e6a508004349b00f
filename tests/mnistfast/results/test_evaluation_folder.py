"""One folder a question, and a name that every system takes."""

import itertools
import re
from pathlib import Path

import pytest

from mnistfast.options.commands import EvaluateOptions
from mnistfast.results.evaluation_folder import evaluation_folder

RUN = Path("runs/a/best.safetensors")
OF_RUN = {"data": "/sets/digits", "classes": "3,5", "resize": 28, "gray": True}


def name(checkpoints=(RUN,), called="digits", of_run=OF_RUN, **options):
    folder = evaluation_folder(checkpoints, called, EvaluateOptions(**options), of_run)
    assert folder.parent == checkpoints[0].parent
    return folder.name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"classes": "3,5"},
        {"resize": 28},
        {"gray": True},
        {"data": "/sets/digits", "classes": "3,5"},
        {"batch_size": 7},
    ],
)
def test_the_plain_question(options):
    """Saying what the run says anyway, or how fast to answer, asks nothing else."""
    assert name(**options) == "evaluate-digits"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"head": 1}, "evaluate-digits+head1"),
        ({"head": 1, "tta": 2}, "evaluate-digits+head1+tta2"),
        ({"classes": "1,2"}, "evaluate-digits+classes-1,2"),
        ({"data": "mnist"}, "evaluate-digits+all-classes"),
        ({"resize": 32}, "evaluate-digits+resize32"),
        ({"gray": True, "of_run": {}}, "evaluate-digits+gray"),
        ({"checkpoints": [Path("runs/a/last.safetensors")]}, "evaluate-digits+last"),
    ],
)
def test_what_else_was_asked_is_said(options, expected):
    assert name(**options) == expected


def test_no_two_questions_have_one_folder():
    questions = [
        {},
        {"data": "/elsewhere/digits", "classes": "3,5"},
        {"data": "/else/digits", "classes": "3,5"},
        {"checkpoints": [RUN, Path("x/b/best.safetensors")]},
        {"checkpoints": [RUN, Path("y/b/best.safetensors")]},
        {"checkpoints": [RUN, Path("x/b/last.safetensors")]},
        {"checkpoints": [RUN, Path("x/b/best.safetensors"), Path("x/c/best.safetensors")]},
        {"checkpoints": [RUN, Path("x/c/best.safetensors"), Path("x/b/best.safetensors")]},
        {"tta": 1},
        {"data": "mnist"},
    ]
    names = [name(**question) for question in questions]
    for one, other in itertools.combinations(names, 2):
        assert one != other
    assert name(called="digits+tta1") != name(tta=1)
    assert name(classes="a/b") != name(classes="a_b")


@pytest.mark.parametrize("given", ["a/../../b", "x" * 300, "\u00e9" * 200, "line\nbreak", "\udcff", "..", "a:b*?"])
def test_a_name_that_a_user_gave(given, tmp_path):
    made = name(called=given, classes=given, checkpoints=[RUN, Path(f"{given[:50]}/best.safetensors")])
    assert len(made.encode()) < 200
    assert re.fullmatch(r"evaluate-[\w.,=+-]+", made)
    (tmp_path / made).mkdir()
    assert name(called="caf\u00e9") == "evaluate-caf\u00e9"
