"""Named data sets and folders: where they are found, fetched and verified."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Split:
    images: np.ndarray  # uint8 (N, C, H, W)
    labels: np.ndarray  # int64 (N,)


@dataclass(frozen=True, eq=False)
class Dataset:
    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    source: str
    notice: str
    hashes: dict[str, str]


def load(spec: str | None, *, offline: bool = False) -> Dataset:
    raise NotImplementedError


def holdout(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    raise NotImplementedError


def channel_stats(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    raise NotImplementedError
