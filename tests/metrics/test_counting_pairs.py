"""Pairs of points: as many as there can be, the closest of those, however crowded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from coordvlm.metrics.point_pairs import pair_points


def xy(*values):
    return np.asarray(values, dtype=np.float64).reshape(-1, 2)


def test_the_nearest_first_would_be_one_pair_short():
    """0 - 4 - 8 against 3: a greedy choice pairs 4 with 3; here 4 can have 7.5 and 0 takes 3."""
    left, right = pair_points(xy((0, 0), (4, 0)), xy((3, 0), (7.5, 0)), 5.0)
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == [(0, 0), (1, 1)]


def test_the_radius_is_included():
    assert len(pair_points(xy((0, 0)), xy((3, 4)), 5.0)[0]) == 1
    assert len(pair_points(xy((0, 0)), xy((3, 4.001)), 5.0)[0]) == 0


def test_an_exact_hit_is_a_pair():
    assert len(pair_points(xy((7, 7), (7, 7)), xy((7, 7), (7, 7)), 5.0)[0]) == 2


@pytest.mark.parametrize(("predicted", "true"), [([], []), ([], [(1, 1)]), ([(1, 1)], []), ([(0, 0)], [(90, 90)])])
def test_nothing_to_pair(predicted, true):
    left, right = pair_points(xy(*predicted), xy(*true), 5.0)
    assert (len(left), len(right)) == (0, 0)


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_every_possibility(seed):
    rng = np.random.default_rng(seed)
    predicted, true = rng.uniform(0, 14, (int(rng.integers(1, 6)), 2)), rng.uniform(0, 14, (int(rng.integers(1, 6)), 2))
    distance = cdist(predicted, true)
    best = (0, 0.0)
    small, large = sorted((len(predicted), len(true)))
    for order in itertools.permutations(range(large), small):
        pairs = list(enumerate(order)) if len(predicted) == small else [(b, a) for a, b in enumerate(order)]
        for chosen in itertools.product((False, True), repeat=small):
            kept = [distance[p] for p, keep in zip(pairs, chosen, strict=True) if keep]
            if all(d <= 5 for d in kept):
                best = max(best, (len(kept), -sum(kept)))
    left, right = pair_points(predicted, true, 5.0)
    assert (len(left), -distance[left, right].sum()) == (best[0], pytest.approx(best[1]))
    assert len(set(left.tolist())) == len(set(right.tolist())) == len(left)
    assert left.tolist() == sorted(left.tolist())


@pytest.mark.parametrize(("number", "side"), [(300, 384.0), (150, 30.0)])
def test_equal_to_one_assignment_of_all_points(number, side):
    """Groups that do not touch can be assigned one by one; a crowd is one group."""
    rng = np.random.default_rng(number)
    predicted, true = rng.uniform(0, side, (number, 2)), rng.uniform(0, side, (number - 20, 2))
    distance = cdist(predicted, true)
    rows, columns = linear_sum_assignment(np.where(distance <= 5, distance - 1e4, 0.0))
    inside = distance[rows, columns] <= 5
    left, right = pair_points(predicted, true, 5.0)
    assert len(left) == inside.sum()
    assert distance[left, right].max() <= 5
    assert distance[left, right].sum() == pytest.approx(distance[rows, columns][inside].sum())
