"""Figures about logits: accuracy with its interval, per-class figures, likelihood, calibration.

All come from one confusion matrix and one softmax, in float64. (torchmetrics agrees with them, which the tests check;
importing it would add seconds to every run.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of confidence, for the calibration error: the number of Guo et al. 2017
LEAST_VALUES = 2  # for an interval of a mean
WORST = 25  # how many errors to list and to picture
# Outside these a temperature says only that the validation split was too small or too easy to tell.
TEMPERATURES = (0.25, 10.0)


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion of `hits` in `n` (Wilson 1927): unlike the normal one, right near 1."""
    z = 1.959963984540054  # 97.5 % point of the normal distribution
    share, shrink = hits / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Returns counts int64 (classes, classes): rows are labels, columns predictions."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def per_class(confusion: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns precision, recall, F1 and the number of images (`support`) of each class; 0 where one is 0/0."""
    hits, labelled, predicted = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
    columns = {
        "precision": hits / predicted.clamp(min=1),
        "recall": hits / labelled.clamp(min=1),
        "f1": 2 * hits / (labelled + predicted).clamp(min=1),
    }
    return [
        {"class": name} | {key: column[i].item() for key, column in columns.items()} | {"support": int(labelled[i])}
        for i, name in enumerate(names)
    ]


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Returns the expected calibration error: |confidence - accuracy| over `BINS` equal bins, weighted by their images.

    Guo et al. 2017, "On calibration of modern neural networks", equation 3.
    """
    confidence, predicted = probabilities.max(1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # (low, high], as in the paper
    gaps = torch.zeros(BINS, dtype=torch.float64)
    gaps.index_add_(0, bins, (predicted == labels).double() - confidence.double())
    return (gaps.abs().sum() / len(labels)).item()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Returns the T in `TEMPERATURES` for which softmax(logits / T) gives the labels the greatest likelihood.

    The negative log-likelihood is convex in 1/T, so it has one minimum in log T: golden-section search finds it.
    """
    logits = logits.double()
    low, high = (math.log(bound) for bound in TEMPERATURES)
    golden = (math.sqrt(5) - 1) / 2

    def cost(log_t: float) -> float:
        return F.cross_entropy(logits / math.exp(log_t), labels).item()

    left, right = high - golden * (high - low), low + golden * (high - low)
    cost_left, cost_right = cost(left), cost(right)
    while high - low > 1e-4:
        if cost_left <= cost_right:
            high, right, cost_right = right, left, cost_left
            left = high - golden * (high - low)
            cost_left = cost(left)
        else:
            low, left, cost_left = left, right, cost_right
            right = low + golden * (high - low)
            cost_right = cost(right)
    return math.exp((low + high) / 2)


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Returns the mean of at least `LEAST_VALUES` values and its 95 % interval by Student's t distribution."""
    from scipy.special import stdtrit  # here, for it takes 0.3 s to import, and few runs repeat anything

    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return fmean(values), (fmean(values) - half, fmean(values) + half)


def score(logits: Tensor, labels: Tensor, classes: Sequence[str], temperature: float) -> dict[str, Any]:
    """Returns all that is said about a test: plain numbers, lists and dicts.

    Args:
        logits: (N, classes), N at least 1.
        labels: int64 (N,).
        classes: a name for each logit.
        temperature: divides the logits for `nll`, `calibration_error` and the confidences; the two figures are given
            as the model gives them too (`..._uncalibrated`).
    """
    logits = logits.double()
    probabilities, raw = (logits / temperature).softmax(1), logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    hits = int((predicted == labels).sum())
    losses = F.cross_entropy(logits / temperature, labels, reduction="none")
    confusion = confusion_matrix(predicted, labels, len(classes))
    wrong = (predicted != labels).nonzero().flatten()
    worst = wrong[losses[wrong].argsort(descending=True, stable=True)][:WORST]
    return {
        "accuracy": hits / len(labels),
        "n": len(labels),
        "interval": list(wilson_interval(hits, len(labels))),
        "temperature": temperature,
        "nll": losses.mean().item(),
        "nll_uncalibrated": F.cross_entropy(logits, labels).item(),
        "calibration_error": calibration_error(probabilities, labels),
        "calibration_error_uncalibrated": calibration_error(raw, labels),
        "per_class": per_class(confusion, classes),
        "confusion": confusion.tolist(),
        "worst_errors": [
            {
                "index": int(i),
                "label": classes[int(labels[i])],
                "predicted": classes[int(predicted[i])],
                "confidence": confidence[i].item(),
            }
            for i in worst
        ],
    }
