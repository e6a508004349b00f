"""What a name may do to the screen: nothing."""

import ast
from pathlib import Path

import pytest

import mnistfast
from mnistfast import text

ORDINARY = "words, \u00e9, \u65e5\u672c\u3000\u8a9e, \U0001f600, a\u00a0b"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (ORDINARY, ORDINARY),
        ("\x1b[31m\x07\x00\x7f", "\\x1b[31m\\x07\\x00\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\u202eexe\u2066\u200e", "\\u202eexe\\u2066\\u200e"),
        ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\x85d"),
        ("\ud800\udc80", "\\ud800\\udc80"),
    ],
)  # fmt: skip
def test_printable(name, shown):
    assert text.printable(name) == shown


def test_show_prints_one_line(capsys):
    text.show("a\n\x1b[31mb")
    assert capsys.readouterr().out == "a\\n\\x1b[31mb\n"


def test_aligned():
    assert text.aligned([["a", "bc", ""], ["long\n", "d", "e"]]) == ["a       bc", "long\\n  d   e"]


def test_nothing_else_prints():
    """Lines for people go through `show`; what is printed otherwise is JSON, YAML, or has no name in it."""
    others = []
    for file in Path(mnistfast.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
            ):
                continue
            printed = ast.unparse(node.args[0])
            if not printed.startswith(("json.dumps(", "config.to_yaml(")) and file.name not in (
                "__main__.py",
                "text.py",
            ):
                others.append(f"{file.name}:{node.lineno}: {printed}")
    assert others == []
