"""Numbers about attention on maps made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from coordvlm.metrics.looking import SeenClip, at_place, centre_of_mass, entropy, focus_ratio, patch_of, summarise

GRID = (2, 5)  # rows, columns
NUM = 10


def one(patch: int) -> np.ndarray:
    out = np.zeros(NUM)
    out[patch] = 1.0
    return out


UNIFORM = np.full(NUM, 0.1)


def test_entropy_is_one_where_uniform_and_zero_on_a_single_patch() -> None:
    half = np.zeros(NUM)
    half[:5] = 0.2
    found = entropy(np.stack([UNIFORM, one(3), half]))
    assert found == pytest.approx([1.0, 0.0, np.log(5) / np.log(10)])
    assert entropy(np.ones((4, 1))).tolist() == [0.0] * 4  # a frame of one patch


def test_focus_is_one_where_uniform_and_what_a_few_patches_can_reach_at_most() -> None:
    thirds = np.zeros(NUM)
    thirds[[1, 4, 7]] = 1 / 3
    assert focus_ratio(np.stack([UNIFORM, thirds, one(0)])) == pytest.approx([1.0, NUM / 3, NUM / 3])
    assert focus_ratio(np.asarray([0.5, 0.5])) == pytest.approx(1.0)  # fewer patches than are taken together


def test_the_centre_of_mass_is_in_shares_of_the_frame_x_first() -> None:
    assert centre_of_mass(UNIFORM, GRID) == pytest.approx([0.5, 0.5])
    assert centre_of_mass(one(0), GRID) == pytest.approx([0.1, 0.25])
    assert centre_of_mass(one(4), GRID) == pytest.approx([0.9, 0.25])
    assert centre_of_mass((one(5) + one(9)) / 2, GRID) == pytest.approx([0.5, 0.75])


def test_a_place_belongs_to_the_patch_it_lies_in() -> None:
    places = np.asarray([[0.0, 0.0], [0.19, 0.49], [0.21, 0.49], [1.0, 1.0], [0.5, 0.51], [np.nan, 0.5]])
    assert patch_of(places, GRID).tolist() == [0, 0, 1, 9, 7, -1]


def test_mass_hits_and_distance_are_means_over_frames_with_a_place() -> None:
    """Two layers, three frames, one head; nobody knows a place in the last frame."""
    place = np.asarray([[0.1, 0.25], [0.9, 0.75], [np.nan, np.nan]])
    maps = np.stack([np.stack([one(0), one(0), one(3)]), np.stack([UNIFORM * 0.5 + one(0) * 0.5, one(9), one(3)])])[:, :, None]
    found = at_place(maps, place, GRID)
    assert found.hit[:, 0].tolist() == [0.5, 1.0]
    assert found.mass[:, 0] == pytest.approx([0.5, (0.55 + 1.0) / 2])
    assert found.distance[0, 0] == pytest.approx(np.hypot(0.8, 0.5) / 2)


def test_without_any_place_they_are_unknown_and_nothing_is_claimed() -> None:
    maps = np.broadcast_to(UNIFORM, (2, 3, 4, NUM))
    found = summarise("fine", maps, np.full((3, 2), np.nan), GRID)
    assert not found.knows_places
    assert np.isnan(found.place.hit).all()
    assert found.entropy.shape == (2, 4)
    assert found.entropy == pytest.approx(np.ones((2, 4)))


def test_a_head_that_follows_wanders_and_one_that_stares_does_not() -> None:
    follows, stares = np.stack([one(0), one(4)]), np.stack([one(2), one(2)])
    found = summarise("fine", np.stack([follows, stares], 1)[None], np.asarray([[0.1, 0.2], [0.9, 0.2]]), GRID)
    assert found.wander[0] == pytest.approx([0.4, 0.0])
    assert found.place.hit[0].tolist() == [1.0, 0.0]
    assert found.centre[0, 0] == pytest.approx([0.5, 0.25])
    assert found.chance == 0.1


@pytest.mark.parametrize(("shape", "grid"), [((1, 2, 1, NUM), (3, 3)), ((1, 3, 1, NUM), GRID), ((2, 1, NUM), GRID)])
def test_shapes_that_do_not_belong_together_are_refused(shape: tuple[int, ...], grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        summarise("fine", np.full(shape, 0.1), np.zeros((2, 2)), grid)


def test_maps_that_are_no_distribution_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        summarise("fine", np.full((1, 2, 1, NUM), 0.2), np.zeros((2, 2)), GRID)


def test_the_scale_ends_at_the_largest_weight_of_any_arm() -> None:
    maps = {"coarse": np.full((2, 2, 2), 0.25, dtype=np.float32), "fine": np.asarray([[[0.7, 0.1], [0.1, 0.1]]] * 2, dtype=np.float32)}
    clip = SeenClip(1, np.zeros((2, 8, 8, 3), dtype=np.uint8), maps, np.full((2, 2), np.nan, dtype=np.float32))
    assert clip.top == pytest.approx(0.7)
