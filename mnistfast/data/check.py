"""Looking through a data set: what is in it, and what is wrong with it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mnistfast.data import published
from mnistfast.data.datasets import Dataset, Split
from mnistfast.text import aligned

LEAK = 0.005
"""Share of the test images that may occur among the training images too: 50 of MNIST's, which has none."""


@dataclass(frozen=True)
class Findings:
    """What `look_through` found.

    Attributes:
        name: of the data set.
        source: where it was read from.
        size: "28 x 28 x 1".
        counts: images by split.
        classes: images of each class by split.
        hashes: MD5 by role.
        duplicates: images that occur more than once, within each split and across the two.
        polarity: for grey images, which splits are light on dark ("light") or dark on light ("dark").
        notes: what the user should know.
        wrong: what makes the set unfit; empty when nothing does.
    """

    name: str
    source: str
    size: str
    counts: dict[str, int]
    classes: dict[str, dict[str, int]]
    hashes: dict[str, str]
    duplicates: dict[str, int]
    polarity: dict[str, str]
    notes: list[str]
    wrong: list[str]

    def as_json(self) -> dict[str, Any]:
        """Returns everything as plain data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Returns everything as text."""
        by_class = aligned(
            [[name, f"{n['train']:>7,} train", f"{n['test']:>7,} test"] for name, n in self.classes.items()]
        )
        rows = {
            "data": [f"{self.name} ({self.source})"],
            "images": [f"{', '.join(f'{count:,} {part}' for part, count in self.counts.items())}, {self.size}"],
            "md5": [f"{md5}  {role}" for role, md5 in self.hashes.items()],
            "class": by_class,
            "duplicates": [", ".join(f"{count:,} {where}" for where, count in self.duplicates.items())],
            "polarity": [f"{part}: {what}" for part, what in self.polarity.items()],
            "note": self.notes,
            "wrong": self.wrong,
        }
        return [f"{title:<12}{line}" for title, lines in rows.items() for line in lines]


def look_through(dataset: Dataset) -> Findings:
    """Counts, compares and judges what is in `dataset`; reads every pixel once."""
    splits = {"train": dataset.train, "test": dataset.test}
    counts = {part: np.bincount(split.labels, minlength=len(dataset.classes)) for part, split in splits.items()}
    seen = {part: _by_content(split) for part, split in splits.items()}
    shared = seen["train"].keys() & seen["test"].keys()
    leaked = sum(len(seen["test"][key]) for key in shared)
    contradicting = sum(len(set(labels)) > 1 for found in seen.values() for labels in found.values())
    contradicting += sum(not set(seen["train"][key]) & set(seen["test"][key]) for key in shared)
    duplicates = {f"within {part}": len(split.labels) - len(seen[part]) for part, split in splits.items()}
    duplicates["of test in train"] = leaked
    grey = dataset.train.images.shape[1] == 1
    polarity = {part: _polarity(split) for part, split in splits.items()} if grey else {}

    wrong = [
        f"{part} has no image of class {', '.join(dataset.classes[k] for k in np.flatnonzero(count == 0))}"
        for part, count in counts.items()
        if not count.all()
    ]
    if leaked > LEAK * len(dataset.test.labels):
        wrong.append(f"{leaked:,} of {len(dataset.test.labels):,} test images are training images too")
    if len(set(polarity.values())) > 1:
        wrong.append(f"training images are {polarity['train']}, test images {polarity['test']}")
    official = published.SETS[dataset.name].md5 if dataset.name in published.SETS else {}
    changed = [role for role, md5 in official.items() if dataset.hashes[role] != md5]
    if changed:
        wrong.append(f"not the official {dataset.name}: {', '.join(changed)} differ from it")
    notes = [dataset.notice] if dataset.notice else []
    if contradicting:
        notes.append(f"{contradicting:,} images occur with different labels")
    if most := _imbalance(counts["train"]):
        notes.append(f"the largest class has {most:.1f} times the training images of the smallest")
    if "dark on light" in polarity.values():
        notes.append("MNIST and models of it are light on dark: predictions between the two will be wrong")
    channels, height, width = dataset.train.images.shape[1:]
    classes = {name: {part: int(count[k]) for part, count in counts.items()} for k, name in enumerate(dataset.classes)}
    return Findings(
        dataset.name,
        dataset.source,
        f"{height} x {width} x {channels}",
        {part: len(split.labels) for part, split in splits.items()},
        classes,
        dataset.hashes,
        duplicates,
        polarity,
        notes,
        wrong,
    )


def _by_content(split: Split) -> dict[bytes, list[int]]:
    """Returns the labels of each different image, by the hash of its pixels."""
    found: dict[bytes, list[int]] = {}
    for key, label in zip(content_keys(split), split.labels.tolist(), strict=True):
        found.setdefault(key, []).append(label)
    return found


def content_keys(split: Split) -> list[bytes]:
    """Returns the hash of each image's pixels: equal for equal images."""
    return [hashlib.md5(image.tobytes(), usedforsecurity=False).digest() for image in split.images]


def _polarity(split: Split) -> str:
    """Returns whether the frame of the images, mostly background, is darker than their middle."""
    mean = split.images[:, 0].mean(0)
    height, width = mean.shape
    inner = mean[height // 4 : height - height // 4, width // 4 : width - width // 4]
    frame = np.concatenate([mean[0], mean[-1], mean[:, 0], mean[:, -1]])
    return "light on dark" if frame.mean() <= inner.mean() else "dark on light"


def _imbalance(count: np.ndarray) -> float:
    """Returns the ratio of the largest to the smallest class where it is above 2, else 0."""
    present = count[count > 0]
    ratio = float(present.max() / present.min())
    return ratio if ratio > 2 else 0.0
