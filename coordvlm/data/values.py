"""Numbers as they come out of JSON and text files: checked, never guessed."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

INT64 = (-(2**63), 2**63 - 1)


@contextmanager
def no_collecting() -> Iterator[None]:
    """Millions of small objects, none of them garbage: looking for some doubles the time of reading them."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def integral(value: object) -> int | None:
    """The integer that an int, an integral float or a string of digits means (``"2299"``, ``2299.0``), else None."""
    try:
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    except ValueError:
        pass
    return None


def number(value: object) -> float:
    """A JSON number as a float: NaN for anything else, infinite beyond float64."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def floats(values: list[Any]) -> NDArray[np.float64]:
    """float64[len] of JSON numbers."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:  # an integer beyond float64
        return np.array([number(v) for v in values])


def quads(values: Sequence[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """float64[A, 4] as written and bool[A], True (and NaN in the row) where a value is not a list of 4 numbers."""
    if set(map(type, values)) <= {list} and set(map(len, values)) <= {4}:
        flat = list(chain.from_iterable(values))
        if set(map(type, flat)) <= {int, float}:
            return floats(flat).reshape(-1, 4), np.zeros(len(values), dtype=bool)
    bad = np.array([
        not (isinstance(v, list) and len(v) == 4 and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in v))
        for v in values
    ], dtype=bool)
    rows = [[math.nan] * 4 if b else v for v, b in zip(values, bad.tolist(), strict=True)]
    return floats(list(chain.from_iterable(rows))).reshape(-1, 4), bad
