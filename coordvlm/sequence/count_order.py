"""In which order the objects of a category are pointed at. Deterministic, and blind to the order of the annotation.

Shapes: N points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from coordvlm.utils.errors import ConfigError

#: Height of a reading row, in median distances to the nearest neighbour.
ROW_SHARE = 0.5
#: Height of a fixed row, px of the source image.
FIXED_ROW = 50.0


def order_points(points_px: NDArray[np.float64], policy: str) -> NDArray[np.int64]:
    """The order in which objects are counted.

    | policy | order |
    |---|---|
    | ``rows`` | reading rows as high as half the median distance to the nearest neighbour, from top to bottom; x within a row |
    | ``rows50`` | fixed rows of 50 px of the source image: floor(y / 50), then x |
    | ``left_to_right`` | x, then y |
    | ``nearest_path`` | from the point with the least x + y, always on to the nearest one not yet visited |

    Reading rows are cut from the top: the topmost point that is left opens a row, and every point less than the row's height below it
    belongs to that row. So objects that stand in line form one row wherever the line lies, as long as they are off it by less than a
    quarter of their distance; fixed rows cut a line in two where it crosses a multiple of 50. One height serves near and far images.
    Ties are broken by (y, x, index).

    Args:
        points_px: float64[N, 2], (x, y) in source pixels.
    Returns:
        int64[N], a permutation: position in the order -> index of the point.
    """
    if policy not in POLICIES:
        raise ConfigError(f"sequence.order must be one of {', '.join(POLICIES)}, got {policy!r}")
    points = np.asarray(points_px, dtype=np.float64).reshape(-1, 2)
    scan = np.lexsort((points[:, 0], points[:, 1]))  # stable: equal points stay in the order of their index
    return scan[POLICIES[policy](points[scan])].astype(np.int64)


def _rows(points: NDArray[np.float64]) -> NDArray[np.int64]:
    if len(points) < 2:
        return np.arange(len(points))
    nearest, _ = cKDTree(points).query(points, k=2)
    height = ROW_SHARE * float(np.median(nearest[:, 1]))
    row, top, rows = -1, -math.inf, []
    for y in points[:, 1].tolist():
        if y > top and y - top >= height:
            row, top = row + 1, y
        rows.append(row)
    return np.lexsort((points[:, 0], np.asarray(rows)))


def _rows50(points: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.lexsort((points[:, 0], points[:, 1] // FIXED_ROW))


def _left_to_right(points: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.argsort(points[:, 0], kind="stable")


def _nearest_path(points: NDArray[np.float64]) -> NDArray[np.int64]:
    left = np.ones(len(points), dtype=np.bool_)
    path = []
    distance = points.sum(1)
    for _ in range(len(points)):
        at = int(np.argmin(np.where(left, distance, np.inf)))
        left[at] = False
        path.append(at)
        distance = ((points - points[at]) ** 2).sum(1)
    return np.asarray(path, dtype=np.int64)


#: Policy -> int64[N] of points that are sorted by (y, x) already.
POLICIES: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.int64]]] = {
    "rows": _rows, "rows50": _rows50, "left_to_right": _left_to_right, "nearest_path": _nearest_path,
}
