"""Every image gets its own map, which kornia agrees with; draws are the seed's and can be sliced."""

import numpy as np
import pytest
import torch

from mnistfast.data.augment import _POINTS, AUGMENTATIONS, Augmentation, Draws, _bump_weights, augment, maps, warp

EVERYTHING = Augmentation(rotation=20, shift=0.2, zoom=0.2, shear=0.2, elastic=1.5, flip=True)


def noise(count, channels=1, height=28, width=28):
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def geometry():
    return pytest.importorskip("kornia.geometry", reason="kornia, the oracle, is not installed: pip install kornia")


@pytest.mark.parametrize("name", ["sources", "objects"])
@pytest.mark.parametrize("size", [(1, 28, 28), (3, 32, 32), (1, 20, 33)], ids=str)
def test_affine_part_against_kornia(geometry, name, size):
    how, images = AUGMENTATIONS[name], noise(32, *size)
    draws = how.draw(32, [5])
    turn, shift_x, shift_y, zoom_x, zoom_y, slope, side = draws.amounts.double().unbind(1)
    height, width = size[1:]
    matrix = geometry.get_affine_matrix2d(
        torch.stack((shift_x * how.shift * width, shift_y * how.shift * height), 1),
        torch.tensor([[(width - 1) / 2, (height - 1) / 2]], dtype=torch.float64).expand(32, 2),
        torch.stack((1 + zoom_x * how.zoom, 1 + zoom_y * how.zoom), 1),
        -turn * how.rotation,  # kornia's turns are clockwise here,
        -torch.atan(slope * how.shear),  # and its shears are angles, to the other side
    )
    mirrored = torch.where(((side < 0) & how.flip)[:, None, None, None], images.flip(3), images).double()
    expected = geometry.warp_affine(mirrored, matrix[:, :2], size[1:], padding_mode="border", align_corners=False)
    # positions are float32, up to 32 pixels; a step between two pixels of this noise is about 1, at most 8
    torch.testing.assert_close(augment(images, how, draws).double(), expected, rtol=0, atol=1e-4)


def test_elastic_part_against_kornia(geometry):
    """The field itself is built here a second time, as sums of bumps."""
    how, images = Augmentation(elastic=2.0), noise(8, 3, 20, 33)
    draws = how.draw(8, [5])
    moved = np.zeros((8, 2, 20, 33))
    for axis in (0, 1):
        for image in range(8):
            by_row, by_column = (_bump_weights(side, images.device).double().numpy() for side in (20, 33))
            for i in range(_POINTS):
                for j in range(_POINTS):
                    bump = np.outer(by_row[:, i], by_column[:, j])
                    moved[image, axis] += 2.0 * draws.bumps[image, axis, i, j].item() * bump
    across = torch.from_numpy(np.arange(33) + moved[:, 0])
    down = torch.from_numpy(np.arange(20)[:, None] + moved[:, 1])
    # in kornia's own units 0 and H - 1 are the middles of the outer pixels
    expected = geometry.remap(images.double(), across, down, padding_mode="border", align_corners=True)
    torch.testing.assert_close(augment(images, how, draws).double(), expected, rtol=0, atol=1e-4)


def test_elastic_field_is_as_large_as_said_and_smooth():
    how, ramp = Augmentation(elastic=0.5), torch.arange(28.0).expand(4000, 1, 28, 28)
    moved = (augment(ramp, how, how.draw(4000, [2])) - ramp)[:, 0, :, 6:22]  # sideways, clear of the border
    assert moved.std().item() == pytest.approx(0.5, rel=0.03)
    assert moved.mean().abs().item() < 0.01
    assert moved.diff(dim=2).std().item() < 0.25 * moved.std().item()


def test_nothing_asked_changes_nothing():
    images, how = noise(4, 3, 20, 33), AUGMENTATIONS["none"]
    torch.testing.assert_close(augment(images, how, how.draw(4, [0])), images, rtol=0, atol=1e-5)


def test_every_image_has_its_own_map():
    same = noise(1).expand(64, 1, 28, 28)
    for name in ("mild", "sources"):
        how = AUGMENTATIONS[name]
        assert len(torch.unique(augment(same, how, how.draw(64, [1])), dim=0)) == 64


@pytest.mark.parametrize("name", ["rotation", "shift", "zoom", "shear", "elastic", "flip"])
def test_one_amount_alone_moves_images(name):
    images, how = noise(16), Augmentation(**{name: 0.3})
    moved = augment(images, how, how.draw(16, [1]))
    assert (moved != images).flatten(1).any(1).sum() >= (4 if name == "flip" else 16)
    assert torch.isfinite(moved).all()


def test_draws_reach_both_ends_evenly():
    amounts = EVERYTHING.draw(20_000, [3]).amounts
    assert amounts.min() >= -1
    assert amounts.max() < 1
    assert torch.allclose(amounts.mean(0), torch.zeros(7), atol=0.02)
    assert torch.allclose(amounts.std(0), torch.full((7,), 3**-0.5), atol=0.01)
    assert torch.allclose(torch.corrcoef(amounts.T), torch.eye(7), atol=0.03)


def test_key_alone_decides_and_slices_fit_together():
    images, whole = noise(10), EVERYTHING.draw(10, [1, 2])
    torch.rand(3)
    again, other = EVERYTHING.draw(10, [1, 2]), EVERYTHING.draw(10, [1, 3])
    assert torch.equal(whole.amounts, again.amounts)
    assert torch.equal(whole.bumps, again.bumps)
    assert not torch.equal(whole.amounts, other.amounts)
    pieces = [augment(images[rows], EVERYTHING, whole[rows]) for rows in (slice(0, 4), slice(4, 10))]
    torch.testing.assert_close(torch.cat(pieces), augment(images, EVERYTHING, whole), rtol=0, atol=1e-6)
    assert augment(images[:0], EVERYTHING, whole[slice(0, 0)]).shape == (0, 1, 28, 28)


def test_maps_of_many_batches_are_those_of_each():
    batches = [EVERYTHING.draw(count, [count]) for count in (3, 0, 5)]
    made = maps(EVERYTHING, batches, (28, 28), torch.device("cpu"))
    for draws, rows in zip(batches, torch.arange(8).split([3, 0, 5]), strict=True):
        images = noise(len(draws.amounts))
        assert torch.equal(warp(images, EVERYTHING, made.at(rows)), augment(images, EVERYTHING, draws))


def test_normalising_before_or_after_is_one():
    """What comes in from outside is the border's, black on a digit, whatever number stands for black."""
    images, how = noise(8).clamp(min=0), AUGMENTATIONS["sources"]
    draws = how.draw(8, [4])
    first, then = augment((images - 0.13) / 0.3, how, draws), (augment(images, how, draws) - 0.13) / 0.3
    torch.testing.assert_close(first, then, rtol=0, atol=1e-5)


def test_writing_is_not_mirrored():
    assert not any(AUGMENTATIONS[name].flip for name in ("none", "mild", "sources"))
    assert isinstance(AUGMENTATIONS["mild"].draw(2, [0]), Draws)
