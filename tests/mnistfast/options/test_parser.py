"""Options read from a command line and from YAML."""

from mnistfast.options.commands import RunOptions
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
