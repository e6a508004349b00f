"""Options read from a command line and from YAML."""

from contextlib import suppress

import pytest

from mnistfast.errors import UsageError
from mnistfast.options.commands import RunOptions
from mnistfast.options.finetuning import FinetuneConfig
from mnistfast.options.learning import TrainConfig
from mnistfast.options.parser import Parser, pick


def test_yaml_and_back(tmp_path):
    config = TrainConfig(model="fast", betas=(0.5, 0.75), lr=1e-5, data="/some where/mnist", threads=2)
    (tmp_path / "a.yaml").write_text(config.to_yaml())
    parser = Parser("prog", "words", TrainConfig, RunOptions)
    assert TrainConfig(**parser.given_in_file(tmp_path / "a.yaml")) == config


def test_line_and_back():
    parser = Parser("prog", "words", TrainConfig, RunOptions)
    line = "--model fast --betas [0.5,0.75] --val 500 --overwrite --out=/tmp/x --weight-decay 1e-4"
    given = parser.given(line.split())
    assert set(given) == {"model", "betas", "val", "overwrite", "out", "weight_decay"}
    config = pick(TrainConfig, given)
    assert (config.betas, config.val, config.weight_decay) == ((0.5, 0.75), 500.0, 1e-4)
    assert pick(RunOptions, given) == RunOptions(overwrite=True, out="/tmp/x")


def parsed(cls, words):
    return Parser("prog", "words", cls).given(words)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--lrr", "1"], "unknown option --lrr (did you mean '--lr'?)"),
        (["--bach-size=1"], "unknown option --bach-size=1 (did you mean '--batch-size'?)"),
        (["--batch_size", "1"], "unknown option --batch_size (did you mean '--batch-size'?)"),
        (["--quite"], "unknown option --quite"),
        (["--ba", "1"], "unknown option --ba (did you mean '--betas'?)"),
        (["stray", "--lr", "1"], "unexpected argument 'stray'"),
        (["--epochs", "1", "2"], "unexpected argument '2'"),
        (["--lr"], "argument --lr: expected one argument"),
        (["--gray=1"], "argument --gray: ignored explicit argument '1'"),
        (["--lr", "fast", "stray"], "--lr is fast. It must be a number"),
    ],
)
def test_mistakes_on_a_line(words, line):
    with pytest.raises(UsageError) as refused:
        parsed(TrainConfig, words)
    assert str(refused.value) == line


def test_two_dashes_as_a_value():
    """Some Pythons' argparse takes them away."""
    with suppress(UsageError):
        assert parsed(TrainConfig, ["--data=--"]) == {"data": "--"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("bach_size: 3", "unknown option 'bach_size' in the configuration file (did you mean 'batch_size'?)"),
        ("resume: here", "unknown option 'resume' in the configuration file"),
        ("lr.x: 3", "unknown option 'lr.x' in the configuration file"),
        ("lr: null", "--lr is None. It must be a number"),
        ("betas: null", "--betas is None. It must be two numbers such as [0.9, 0.999]"),
        ("gray: 'no'", "--gray is no. It must be true or false"),
        ("classes: 01", "--classes is 1. It must be a text"),
        ("source: 5", "--from is 5. It must be a text"),
    ],
)
def test_mistakes_in_a_file(text, line, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    cls = FinetuneConfig if "source" in text else TrainConfig
    with pytest.raises(UsageError) as refused:
        Parser("prog", "words", cls).given_in_file(tmp_path / "a.yaml")
    assert str(refused.value) == line


def test_a_file_may_have_the_names_of_the_line(tmp_path):
    (tmp_path / "a.yaml").write_text("from: a\nbatch-size: 3\nlr: 1e-3\ngray: yes\n")
    given = Parser("prog", "words", FinetuneConfig).given_in_file(tmp_path / "a.yaml")
    assert given == {"source": "a", "batch_size": 3, "lr": 1e-3, "gray": True}


def test_what_is_no_option_stays_a_text():
    parser = Parser("prog", "words", RunOptions)
    parser.add_argument("files", nargs="+")
    assert parser.given(["1", "2", "--quiet"]) == {"files": ["1", "2"], "quiet": True}
