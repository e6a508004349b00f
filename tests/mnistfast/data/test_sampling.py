"""What is held out and drawn: shares of each class, the seed, and what is impossible."""

import numpy as np
import pytest

from mnistfast.data.sampling import draw_part, draw_shots, holdout
from mnistfast.errors import UsageError


@pytest.mark.parametrize(
    ("sizes", "count"), [([50] * 10, 100), ([7, 31, 2, 60], 23), ([1, 1, 1, 1, 6], 5), ([5, 5], 8), ([3, 9], 0)]
)
def test_holdout_is_stratified_disjoint_and_covers(sizes, count):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    train, held_out = holdout(labels, count, seed=1)
    assert len(held_out) == count
    for index in (train, held_out):
        assert index.dtype == np.int64
        assert (np.diff(index) > 0).all()
    assert sorted([*train, *held_out]) == list(range(len(labels)))
    assert set(labels[train]) == set(range(len(sizes)))
    shares = np.bincount(labels[held_out], minlength=len(sizes))
    exact = np.array(sizes) * count / len(labels)
    if 1 not in sizes:  # a class that must keep its one sample passes its share on
        assert (np.abs(shares - exact) < 1).all()


def test_holdout_depends_on_the_seed_alone():
    labels = np.repeat(np.arange(10), 30)
    first, again, other = (holdout(labels, 60, seed)[1] for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 30  # 12 by chance


@pytest.mark.parametrize("count", [-1, 9, 10, 12])
def test_holdout_that_is_impossible(count):
    with pytest.raises(UsageError, match=rf"cannot hold out {count} of 10 .*FIX: a count from 0 to 8"):
        holdout(np.repeat([0, 1], 5), count, seed=0)


def test_shots():
    labels = np.repeat([0, 1, 2], [9, 4, 20])
    drawn = draw_shots(labels, 4, seed=3)
    assert np.bincount(labels[drawn]).tolist() == [4, 4, 4]
    assert np.array_equal(drawn, np.unique(drawn))
    assert np.array_equal(drawn, draw_shots(labels, 4, seed=3))
    assert not np.array_equal(drawn, draw_shots(labels, 4, seed=4))
    with pytest.raises(UsageError, match=r"--shots is 5. A class has 4 training images"):
        draw_shots(labels, 5, seed=0)


@pytest.mark.parametrize("count", [0, 1, 30, 33, 34, 38, 39, 40])
def test_a_part_of_any_size(count):
    labels = np.repeat(np.arange(7), [4, 5, 6, 6, 6, 6, 7])
    part = draw_part(labels, count, seed=3)
    assert len(part) == count
    assert len(set(part.tolist())) == count
    assert np.all(np.diff(part) > 0)
    assert count < 34 or set(labels[part]) == set(range(7))
