"""The options of all commands: each is said once, and --help, messages and the dataclasses agree."""

import ast
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

import mnistfast
from mnistfast.__main__ import COMMANDS
from mnistfast.errors import UsageError
from mnistfast.options import commands, finetuning, learning
from mnistfast.options.fields import Options, flags_of, spec_of
from mnistfast.options.parser import Parser, help_of

CLASSES = [
    cls
    for module in (commands, learning, finetuning)
    for cls in vars(module).values()
    if isinstance(cls, type) and issubclass(cls, Options) and cls.__module__ == module.__name__
]
# `data`: a fine-tuning has none unless it is named. The others are of another thing in each command.
SAID_TWICE = {"data", "device", "model", "out", "overwrite"}
NEEDED = {"FinetuneConfig": {"source": "a", "data": "b"}}


@pytest.fixture
def parsers(monkeypatch, capsys):
    """The parser that each command makes, with its classes."""
    made = []

    class Watched(Parser):
        def __init__(self, prog, description, *classes):
            super().__init__(prog, description, *classes)
            made.append((self, classes))

    places = [f"mnistfast.{name}" for name in ("training_command", *COMMANDS)]
    for module in map(import_module, places):
        if hasattr(module, "Parser"):
            monkeypatch.setattr(module, "Parser", Watched)
    for words in (*([name] for name in COMMANDS), ["bench", "time-to"]):
        assert import_module(f"mnistfast.{words[0]}").main([*words[1:], "--help"]) == 0
    capsys.readouterr()
    assert len(made) == len(COMMANDS) + 1
    return made


def test_a_commands_options_are_its_fields(parsers):
    for made, classes in parsers:
        described = {}
        for cls in classes:
            for option in fields(cls):
                assert option.name not in described, f"two classes of {made.prog} have {option.name}"
                described[option.name] = (flags_of(option), help_of(option, cls))
        actions = {action.dest: action for action in made._actions if action.option_strings}
        assert actions.keys() - described.keys() == {"help", "version"}
        for name, (flags, text) in described.items():
            assert (tuple(actions[name].option_strings), actions[name].help) == (flags, text)


def test_an_option_is_told_of_in_one_place():
    texts = {}
    for cls in CLASSES:
        for option in fields(cls):
            texts.setdefault(option.name, set()).add(spec_of(option).text)
    assert {name for name, found in texts.items() if len(found) > 1} == SAID_TWICE


def test_a_subclass_says_nothing_anew_but_the_data_to_learn():
    anew = {
        (cls.__name__, name)
        for cls in CLASSES
        for name in cls.__annotations__
        if any(name in getattr(base, "__dataclass_fields__", {}) for base in cls.__mro__[1:])
    }
    assert anew == {("FinetuneConfig", "data")}


def test_every_choice_is_shown_and_taken():
    tried = 0
    for cls in CLASSES:
        for option in fields(cls):
            spec = spec_of(option)
            for choice in spec.choices:
                needed = NEEDED.get(cls.__name__, {}) if cls is not learning.TrainConfig else {}
                assert getattr(cls(**needed | {option.name: choice}), option.name) == choice
                assert re.search(rf"\b{choice}\b", help_of(option, cls))
                tried += 1
            if spec.choices:
                with pytest.raises(UsageError, match=rf"unknown {option.name} 'x'.* takes {', '.join(spec.choices)}$"):
                    cls(**needed | {option.name: "x"})
                assert spec.default is None or spec.default in spec.choices
    assert tried > 40


def test_messages_name_options_that_there_are():
    """Of the words with two dashes in the package's texts, each is an option of some command."""
    known = {flag for cls in CLASSES for option in fields(cls) for flag in flags_of(option)} | {"--help", "--version"}
    named = set()
    for path in Path(mnistfast.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", node.value))
    assert named - known == set()
    assert len(named) > 40


def test_help_has_headings(parsers):
    text = parsers[0][0].format_help()
    for heading in ("data", "learning", "model", "machine", "output"):
        assert f"\n{heading}:\n" in text
