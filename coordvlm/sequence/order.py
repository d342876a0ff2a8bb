"""In which order the objects of an image are written."""

from __future__ import annotations

import zlib

import numpy as np

from coordvlm.contracts import Object
from coordvlm.utils.errors import ConfigError

ORDERS = ("scan", "random", "size")


def order_objects(objects: list[Object], order: str, seed: tuple[int, int, object]) -> list[Object]:
    """``scan``: (y1, x1, x2, y2, index) ascending on unquantised values; ``size``: area descending; ``random``: seeded by
    (seed, epoch, sample id)."""
    if order == "scan":
        return [o for _, o in sorted(enumerate(objects), key=lambda p: (*(p[1].box_xyxy_px[i] for i in (1, 0, 2, 3)), p[0]))]  # type: ignore[index]
    if order == "size":
        return sorted(objects, key=lambda o: -_area(o))
    if order == "random":
        run_seed, epoch, sample_id = seed
        rng = np.random.default_rng([run_seed, epoch, zlib.crc32(repr(sample_id).encode())])
        return [objects[i] for i in rng.permutation(len(objects))]
    raise ConfigError(f"sequence.order must be one of {', '.join(ORDERS)}, got {order!r}")


def _area(o: Object) -> float:
    x1, y1, x2, y2 = o.box_xyxy_px  # type: ignore[misc]
    return (x2 - x1) * (y2 - y1)
