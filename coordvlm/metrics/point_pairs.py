"""One-to-one pairs of predicted and true points: as many as a radius allows, and of those the closest.

Shapes: D predicted points, N true ones.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from coordvlm.metrics.arrays import FloatArray, IntArray


def pair_points(predicted: FloatArray, true: FloatArray, radius: float) -> tuple[IntArray, IntArray]:
    """The largest number of pairs no further apart than the radius; among those sets the one with the smallest sum of distances.

    A greedy choice by distance can be one pair short where points lie closer together than the radius, so an assignment is solved, in
    each group of points that the radius connects: thousands of separate points cost next to nothing.

    Args:
        predicted: float64[D, 2]. true: float64[N, 2], in the unit of ``radius``.
    Returns:
        int64[Q] and int64[Q]: indices of both sides, ascending in the first.
    """
    none = np.zeros(0, dtype=np.int64)
    if not len(predicted) or not len(true):
        return none, none
    near = cKDTree(predicted).sparse_distance_matrix(cKDTree(true), radius, output_type="coo_matrix")
    rows, columns, distance = near.row.astype(np.int64), near.col.astype(np.int64), near.data
    if not len(rows):
        return none, none
    total = len(predicted) + len(true)
    edges = coo_matrix((np.ones(len(rows)), (rows, columns + len(predicted))), shape=(total, total))
    group = connected_components(edges, directed=False)[1][rows]
    order = np.argsort(group, kind="stable")
    bounds = np.flatnonzero(np.diff(group[order])) + 1
    pairs = [_assign(rows[part], columns[part], distance[part], radius) for part in np.split(order, bounds)]
    left, right = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    ascending = np.argsort(left, kind="stable")
    return left[ascending], right[ascending]


def _assign(rows: IntArray, columns: IntArray, distance: FloatArray, radius: float) -> tuple[IntArray, IntArray]:
    """Pairs of one connected group, from its edges."""
    if len(rows) == 1:
        return rows, columns
    left, row = np.unique(rows, return_inverse=True)
    right, column = np.unique(columns, return_inverse=True)
    size = min(len(left), len(right))
    gain = np.zeros((len(left), len(right)))
    gain[row.reshape(-1), column.reshape(-1)] = radius * (size + 1) - distance  # one more pair outweighs every saving in distance
    at, to = linear_sum_assignment(gain, maximize=True)
    kept = gain[at, to] > 0
    return left[at[kept]], right[to[kept]]
