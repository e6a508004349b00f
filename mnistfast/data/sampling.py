"""Drawing samples by their labels: what is held out of a training set, and a few of each class."""

from __future__ import annotations

import numpy as np

from mnistfast.errors import UsageError


def holdout(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a stratified validation split: each class gives its share of `count`, rounded so that the sum is exact.

    Args:
        labels: int64 (N,).
        count: samples to hold out; 0 for none.
        seed: at least 0; the same labels, count and seed give the same split.

    Returns:
        Indices that train and indices held out, int64, each sorted; together they are 0..N-1, none twice. Every class
        keeps at least one sample to train on.

    Raises:
        UsageError: `count` is negative or leaves a class without training samples.
    """
    total = len(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    most = total - len(classes)
    if not 0 <= count <= most:
        what = f"cannot hold out {count:,} of {total:,} training images for validation"
        raise UsageError(what, "Each class needs one to train on", f"a count from 0 to {max(most, 0):,}")
    # Largest remainder, in integers (all times `total`): round down, then add where the shortfall is greatest.
    shares = sizes * count // total
    for _ in range(count - shares.sum()):
        shortfall = np.where(shares < sizes - 1, sizes * count - shares * total, np.iinfo(np.int64).min)
        shares[np.argmax(shortfall)] += 1
    return _drawn(labels, classes, shares, seed)


def draw_part(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws a stratified part of `count` samples, from 0 to all; else as `holdout`. Returns their indices, sorted."""
    classes = len(np.unique(labels))
    if count > len(labels) - classes:  # more than may be held out: leave the rest out instead
        return holdout(labels, max(0, len(labels) - count), seed)[0]
    return holdout(labels, count, seed)[1]


def draw_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Draws `shots` samples of each class.

    Args:
        labels: int64 (N,).
        shots: at least 1.
        seed: at least 0; the same arguments give the same draw.

    Returns:
        Their indices, int64, sorted.

    Raises:
        UsageError: a class has fewer.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if shots > sizes.min():
        raise UsageError(f"--shots is {shots}", f"A class has {sizes.min():,} training images")
    return _drawn(labels, classes, np.full(len(classes), shots), seed)[1]


def _drawn(labels: np.ndarray, classes: np.ndarray, shares: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws as many samples of each class as its share; returns the indices of the others and of those drawn."""
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for label, share in zip(classes, shares, strict=True):
        held_out[generator.permutation(np.flatnonzero(labels == label))[:share]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
