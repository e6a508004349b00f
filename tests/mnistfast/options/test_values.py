"""Texts of a command line, and what YAML made of a file, as values of options."""

import pytest

from mnistfast.errors import UsageError
from mnistfast.options.values import converted

PAIR = tuple[float, float]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, "12", 12), (int, "-3", -3), (int, "1_000", 1000), (int, 7, 7), (int | None, "null", None),
        (int | None, None, None), (int | None, "5", 5),
        (float, "1e-3", 1e-3), (float, "2", 2.0), (float, 2, 2.0), (float, ".5", 0.5), (float | None, "~", None),
        (bool, True, True), (bool, "false", False),
        (str, "5", "5"), (str, "null", "null"), (str | None, "null", None), (str | None, "[a]", "[a]"),
        (str, "true", "true"),
        (PAIR, "[0.5, 1e-3]", (0.5, 1e-3)), (PAIR, [0.5, 1], (0.5, 1.0)), (PAIR, ["1e-3", "0.5"], (1e-3, 0.5)),
    ],
)  # fmt: skip
def test_values(kind, value, expected):
    found = converted("--x", kind, value)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("kind", "value", "line"),
    [
        (int, "1.5", "--x is 1.5. It must be a whole number"),
        (int, "abc", "--x is abc. It must be a whole number"),
        (int, "", "--x is . It must be a whole number"),
        (int, True, "--x is True. It must be a whole number"),
        (int, None, "--x is None. It must be a whole number"),
        (int | None, 1.0, "--x is 1.0. It must be a whole number"),
        (int, str(2**63), "--x is too large a number. It must be below 9,223,372,036,854,775,808"),
        (float, "nan", "--x is nan. It must be a number"),
        (float, "-inf", "--x is -inf. It must be a number"),
        (float, "fast", "--x is fast. It must be a number"),
        (float, None, "--x is None. It must be a number"),
        (float, [1], "--x is [1]. It must be a number"),
        (float, 10**400, "an option's number is too large. int too large to convert to float"),
        (bool, "yes, please", "--x is yes, please. It must be true or false"),
        (bool, 1, "--x is 1. It must be true or false"),
        (str, 5, "--x is 5. It must be a text"),
        (str | None, ["a"], "--x is ['a']. It must be a text"),
        (PAIR, "0.5", "--x is 0.5. It must be two numbers such as [0.9, 0.999]"),
        (PAIR, "[]", "--x is []. It must be two numbers such as [0.9, 0.999]"),
        (PAIR, "[a, 1]", "--x is ['a', 1]. It must be two numbers such as [0.9, 0.999]"),
        (PAIR, [0.5], "--x is [0.5]. It must be two numbers such as [0.9, 0.999]"),
        (PAIR, [0.5, None], "--x is [0.5, None]. It must be two numbers such as [0.9, 0.999]"),
        (PAIR, None, "--x is None. It must be two numbers such as [0.9, 0.999]"),
    ],
)  # fmt: skip
def test_what_is_none(kind, value, line):
    with pytest.raises(UsageError) as refused:
        converted("--x", kind, value)
    assert str(refused.value) == line
