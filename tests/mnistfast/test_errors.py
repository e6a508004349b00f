"""The one line a user reads, and the exit codes that scripts rely on."""

import pickle

import pytest

from mnistfast import errors
from mnistfast.errors import DataError, MnistfastError, nearest

CODES = {
    "UsageError": (2, "usage"),
    "DataError": (3, "data"),
    "CheckpointError": (4, "checkpoint"),
    "DivergedError": (5, "diverged"),
    "DeviceError": (6, "device"),
    "StorageError": (7, "storage"),
    "ThresholdError": (8, "threshold"),
}


@pytest.mark.parametrize(("name", "code", "kind"), [(name, *rest) for name, rest in CODES.items()])
def test_each_class_has_its_exit_code(name, code, kind):
    error = getattr(errors, name)("x")
    assert isinstance(error, MnistfastError)
    assert (error.code, error.kind) == (code, kind)


def test_no_class_is_missing_from_the_table():
    assert {cls.__name__ for cls in MnistfastError.__subclasses__()} == set(CODES)


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (("a is bad", "It is 3", "use 4"), "a is bad. It is 3. FIX: use 4"),
        (("a is bad", "", "use 4"), "a is bad. FIX: use 4"),
        (("a is bad", "Were they swapped?", ""), "a is bad. Were they swapped?"),
        (("a is bad", "Were they swapped?", "swap"), "a is bad. Were they swapped? FIX: swap"),
        (("a is bad.", "", "use 4"), "a is bad. FIX: use 4"),
        (("a is bad",), "a is bad"),
    ],
)
def test_line(parts, line):
    assert str(DataError(*parts)) == line


def test_parts_stay_apart_and_survive_pickling():
    error = pickle.loads(pickle.dumps(DataError("what", "why", "fix")))
    assert (error.what, error.why, error.fix) == ("what", "why", "fix")
    assert type(error) is DataError


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lenet", " (did you mean 'lenet5'?)"), ("LENET5", " (did you mean 'lenet5'?)"), ("resnet152", ""), ("", "")],
)
def test_nearest(name, hint):
    assert nearest(name, ["cnn1", "lenet5", "fast"]) == hint


def test_nearest_gives_back_the_spelling_of_the_choice():
    assert nearest("adamw", iter(["SGD", "AdamW"])) == " (did you mean 'AdamW'?)"


def test_a_name_from_a_file_cannot_break_the_line() -> None:
    error = DataError("it has \n\x1b[31m_train and \u00e9\ud800")
    assert str(error) == "it has \\n\\x1b[31m_train and \u00e9\\ud800"
