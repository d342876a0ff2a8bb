from __future__ import annotations

import itertools

import numpy as np
import pytest

from coordvlm.sequence.count_order import POLICIES, order_points
from coordvlm.utils.errors import ConfigError


def cloud(seed: int, num: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 384, (num, 2))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num", [0, 1, 2, 3, 7, 20, 400])
def test_every_point_is_in_the_order_once(policy: str, num: int) -> None:
    order = order_points(cloud(num, num), policy)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_annotation_does_not_matter(policy: str, seed: int) -> None:
    points = cloud(seed, 17)
    shuffled = points[np.random.default_rng(99).permutation(17)]
    np.testing.assert_array_equal(points[order_points(points, policy)], shuffled[order_points(shuffled, policy)])


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_points_stay_in_the_order_of_their_index(policy: str) -> None:
    assert order_points(np.full((6, 2), 30.0), policy).tolist() == list(range(6))


@pytest.mark.parametrize("policy", ["rows", "left_to_right", "nearest_path"])
def test_the_order_does_not_depend_on_the_scale_of_the_image(policy: str) -> None:
    points = cloud(3, 30)
    np.testing.assert_array_equal(order_points(points, policy), order_points(points * 8, policy))


@pytest.mark.parametrize("offset", [0.0, 13.0, 49.0])
def test_a_grid_that_is_a_little_off_is_read_line_by_line(offset: float) -> None:
    """8 lines of 6, 40 px apart, each object up to 9 px off its line: less than a quarter, wherever the grid lies."""
    rng = np.random.default_rng(7)
    lines = [[(30 + 40 * x, offset + 20 + 40 * y) for x in range(6)] for y in range(8)]
    points = np.asarray(lines, dtype=float).reshape(-1, 2)
    points[:, 1] += rng.uniform(-9, 9, 48)
    assert order_points(points, "rows").tolist() == list(range(48))
    shuffle = rng.permutation(48)
    assert shuffle[order_points(points[shuffle], "rows")].tolist() == list(range(48))


def test_fixed_rows_cut_a_line_at_every_fifty_pixels() -> None:
    points = np.asarray([[10, 51], [90, 49], [50, 99], [70, 100]], dtype=float)
    assert order_points(points, "rows50").tolist() == [1, 0, 2, 3]


def test_two_points_are_one_row_when_they_are_flat() -> None:
    right_above, flat = np.asarray([[100, 0], [0, 30]], dtype=float), np.asarray([[100, 0], [0, 80]], dtype=float)
    assert order_points(right_above, "rows").tolist() == [1, 0]
    assert order_points(flat, "rows").tolist() == [0, 1]


def test_left_to_right_is_x_then_y() -> None:
    points = cloud(11, 25).round(-1)
    want = sorted(range(25), key=lambda i: (points[i, 0], points[i, 1], i))
    assert order_points(points, "left_to_right").tolist() == want


def test_the_path_always_goes_on_to_the_nearest_point() -> None:
    points = cloud(5, 40)
    path = order_points(points, "nearest_path")
    assert path[0] == np.argmin(points.sum(1))
    for step, (a, b) in enumerate(itertools.pairwise(path.tolist())):
        left = path[step + 1 :]
        assert np.linalg.norm(points[a] - points[b]) == pytest.approx(np.linalg.norm(points[left] - points[a], axis=1).min())


def test_a_policy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sequence\.order must be one of rows, rows50, left_to_right, nearest_path, got 'scan'"):
        order_points(cloud(0, 3), "scan")
