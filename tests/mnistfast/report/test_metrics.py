"""Figures against definitions spelled out, and against torchmetrics."""

import math

import pytest
import torch
import torch.nn.functional as F

from mnistfast.report.metrics import (
    TEMPERATURES,
    calibration_error,
    confusion_matrix,
    fit_temperature,
    mean_interval,
    per_class,
    score,
    wilson_interval,
)

NAMES = ("a", "b", "c", "d")
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])  # no d
PREDICTED = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 0, 1])


@pytest.fixture
def drawn():
    """Logits and labels of 2,000 images and 6 classes, about half of them right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (2000,), generator=generator)
    return 2 * torch.randn(2000, 6, generator=generator) + 2 * F.one_hot(labels, 6), labels


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilson(hits, n, low, high):
    """Four rows of Newcombe 1998, table I (method 3); its fourth is 1/29, of which this is the mirror of 0/29."""
    found = wilson_interval(hits, n)
    assert found == pytest.approx((low, high), abs=6e-5)


def test_confusion_and_per_class():
    confusion = confusion_matrix(PREDICTED, LABELS, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 1, 3, 0], [0, 0, 0, 0]]
    a, b, c, d = per_class(confusion, NAMES)
    assert a == {"class": "a", "precision": 2 / 3, "recall": 2 / 3, "f1": pytest.approx(2 / 3), "support": 3}
    assert (b["precision"], b["recall"], b["support"]) == (0.5, 1.0, 2)
    assert (c["precision"], c["recall"], c["f1"]) == (1.0, 0.6, pytest.approx(0.75))
    assert (d["precision"], d["recall"], d["f1"], d["support"]) == (0, 0, 0, 0)


def test_calibration_error():
    # bin (0.6, 0.667]: 3 of 4 right at 0.65; bin (0.933, 1]: 1 of 2 right at 0.95 and 1.0
    confidence = torch.tensor([0.65, 0.65, 0.65, 0.65, 0.95, 1.0], dtype=torch.float64)
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    labels = torch.tensor([0, 0, 0, 1, 0, 1])
    assert calibration_error(probabilities, labels) == pytest.approx((4 * 0.1 + 2 * 0.475) / 6)


@pytest.mark.parametrize("true", [0.5, 1.7, 4.0])
def test_temperature_is_found(true):
    """Labels drawn from softmax(z) are best explained by T when the logits are T z."""
    generator = torch.Generator().manual_seed(1)
    z = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(z.softmax(1), 1, generator=generator).flatten()
    found = fit_temperature(true * z, labels)
    assert found == pytest.approx(true, rel=0.03)

    def nll(temperature):
        return F.cross_entropy(true * z.double() / temperature, labels).item()

    assert nll(found) <= min(nll(found * 1.01), nll(found / 1.01))


def test_temperature_stays_in_bounds():
    labels = torch.arange(10)
    right, wrong = F.one_hot(labels, 10).float(), F.one_hot((labels + 1) % 10, 10).float()
    assert fit_temperature(right, labels) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(wrong, labels) == pytest.approx(TEMPERATURES[1], rel=1e-3)


def test_score(drawn):
    logits, labels = drawn
    scores = score(logits, labels, "abcdef", 2.0)
    hits = sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True))
    assert scores["accuracy"] == hits / 2000
    assert scores["n"] == 2000
    assert scores["interval"] == list(wilson_interval(hits, 2000))
    assert scores["nll"] == pytest.approx(F.nll_loss((logits.double() / 2).log_softmax(1), labels).item())
    assert scores["nll_uncalibrated"] == pytest.approx(F.nll_loss(logits.double().log_softmax(1), labels).item())
    assert sum(map(sum, scores["confusion"])) == 2000
    assert sum(row["support"] for row in scores["per_class"]) == 2000
    worst = scores["worst_errors"]
    assert len(worst) == 25
    costs = [-math.log((logits[e["index"]].double() / 2).softmax(0)[labels[e["index"]]].item()) for e in worst]
    assert costs == sorted(costs, reverse=True)
    for error in worst:
        assert error["label"] == "abcdef"[labels[error["index"]]] != error["predicted"]
        assert error["confidence"] == pytest.approx((logits[error["index"]].double() / 2).softmax(0).max().item())


def test_score_without_errors():
    scores = score(10 * torch.eye(4), torch.arange(4), NAMES, 1.0)
    assert scores["accuracy"] == 1.0
    assert scores["worst_errors"] == []
    assert scores["interval"][1] == 1.0


@pytest.mark.slow  # importing torchmetrics takes longer than all the tests above
def test_against_torchmetrics(drawn):
    from torchmetrics.functional import classification as tm

    logits, labels = drawn
    scores = score(logits, labels, "abcdef", 1.0)
    options = {"num_classes": 6, "average": None}
    for key, metric in (
        ("precision", tm.multiclass_precision),
        ("recall", tm.multiclass_recall),
        ("f1", tm.multiclass_f1_score),
    ):
        assert [row[key] for row in scores["per_class"]] == pytest.approx(metric(logits, labels, **options).tolist())
    assert scores["confusion"] == tm.multiclass_confusion_matrix(logits, labels, 6).tolist()
    expected = tm.multiclass_calibration_error(logits, labels, 6, n_bins=15)
    assert scores["calibration_error"] == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.7062), (3, 4.3027), (6, 2.5706), (20, 2.0930), (200, 1.9720)])
def test_interval_of_a_mean(count, quantile):
    """Against the 97.5 % points of Student's t distribution in any table."""
    values = [0.0, 1.0] * (count // 2) + [0.5] * (count % 2)
    mean, (low, high) = mean_interval(values)
    spread = (sum((value - 0.5) ** 2 for value in values) / (count - 1) / count) ** 0.5
    assert mean == 0.5
    assert (high - low) / 2 == pytest.approx(quantile * spread, rel=1e-4)
    assert (high + low) / 2 == pytest.approx(0.5)
