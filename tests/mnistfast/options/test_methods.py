"""The table of fine-tuning methods, and that nothing but it and what learns by each of them knows their names."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest

import mnistfast
from mnistfast.errors import UsageError
from mnistfast.models.adapters import SELECTIONS
from mnistfast.options import commands, methods
from mnistfast.options.finetuning import FinetuneConfig
from mnistfast.options.methods import METHODS, Method, method_of

PACKAGE = Path(mnistfast.__file__).parent
KNOW_THEM = {PACKAGE / "options" / "methods.py", PACKAGE / "models" / "adapters.py"}
OPTIONS = {field.name for field in fields(commands.EvaluateOptions)}  # one of which is called as a method is: head


def test_a_method_learns_something_by_the_same_name():
    assert SELECTIONS.keys() == METHODS.keys()
    assert methods.DEFAULT in METHODS


def mentions(tree):
    """Yields the methods' names in a file, of those that options have too the ones that something is decided by."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in METHODS.keys() - OPTIONS:
            yield node.value
        for part in deciding(node):
            values = (inner.value for inner in ast.walk(part) if isinstance(inner, ast.Constant))
            yield from (value for value in values if value in METHODS.keys() & OPTIONS)


def deciding(node):
    """Returns the parts of a piece of syntax that something is told apart by."""
    match node:
        case ast.Compare():
            return [node.left, *node.comparators]
        case ast.Dict():
            return filter(None, node.keys)
        case ast.Subscript():
            return [node.slice]
        case ast.match_case():
            return [node.pattern]
    return []


@pytest.mark.parametrize("text", ['how == "lora"', 'how in ("head", "x")', '{"head": 1}', 'x["head"]', "f('scratch')"])
def test_a_mention_is_found(text):
    assert list(mentions(ast.parse(text)))


def test_no_other_file_knows_a_methods_name():
    files = set(PACKAGE.rglob("*.py"))
    assert files > KNOW_THEM
    found = {file.name: list(mentions(ast.parse(file.read_text()))) for file in files - KNOW_THEM}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("text", "name", "number"), [("full", "full", 0), ("last:3", "last", 3), ("lora:16", "lora", 16)]
)
def test_named(text, name, number):
    assert method_of(text) == (METHODS[name], number)
    assert FinetuneConfig(source="a", data="b", method=text).how == (METHODS[name], number)


@pytest.mark.parametrize("text", ["last", "last:", "last:0", "last:x", "last:-1", "full:2", "lora:1.5"])
def test_a_number_where_it_belongs(text):
    with pytest.raises(UsageError, match=f"--method is {text}. It takes full, head, last:K, bias, lora:R, scratch"):
        method_of(text)


def test_a_fixed_body_and_a_fresh_one_have_nothing_to_forget():
    assert [name for name, method in METHODS.items() if not method.can_forget] == ["head", "scratch"]
    assert Method("new").can_forget


def test_the_help_is_made_of_the_table(monkeypatch):
    assert methods.help_text().startswith("what learns: full; head; last:K, the last K layers; bias; ")
    monkeypatch.setitem(METHODS, "new", Method("new", number="N", words="something else"))
    assert methods.help_text().endswith("; new:N, something else")
