"""The options of the commands: values that cannot work are refused by name."""

import pytest

from mnistfast.errors import UsageError
from mnistfast.options.commands import (
    BenchOptions,
    DemoOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    RunOptions,
    SearchOptions,
    TimeToOptions,
)


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (SearchOptions, {"trials": 0}),
        *((EvaluateOptions, given) for given in (
            {"batch_size": 0}, {"threads": 0}, {"tta": 5}, {"head": -1}, {"min_accuracy": 98},
        )),
        *((BenchOptions, given) for given in ({"seconds": 0.0}, {"seconds": float("nan")}, {"threads": 0})),
        *((TimeToOptions, given) for given in (
            {"model": "cnn3"}, {"against": "cnn3"}, {"forms": "some"}, {"target": 0.0}, {"seeds": 0}, {"threads": 0},
        )),
        *((PredictOptions, given) for given in ({"top_k": 0}, {"threads": 0}, {"head": -1}, {"reject_below": 1.1})),
        *((ExportOptions, given) for given in ({"format": "onnx,tflite"}, {"head": -1}, {"threads": 0})),
        *((DemoOptions, given) for given in ({"port": 65536}, {"threads": 0})),
    ],
)  # fmt: skip
def test_impossible_values(cls, given):
    (name,) = given
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        cls(**given)


def test_what_excludes_each_other():
    with pytest.raises(UsageError, match="--resume continues in the run's own folder"):
        RunOptions(resume="runs/a", overwrite=True)
    with pytest.raises(UsageError, match="--csv and --json"):
        PredictOptions(csv=True, json=True)


def test_formats_are_told_apart_and_counted_once():
    assert ExportOptions(format="onnx, pt2,onnx").formats == ["onnx", "pt2"]
