from __future__ import annotations

import contextlib
import gc
import math

import numpy as np
import pytest

from coordvlm.data.values import integral, no_collecting, number, quads


@pytest.mark.parametrize(("value", "meant"), [
    (7, 7), ("007", 7), (7.0, 7), (-3, -3), (7.5, None), ("7.0", None), ("x", None), (True, None), (None, None), ([7], None),
    (math.nan, None), (math.inf, None), (2**80, 2**80),
])
def test_integers_in_disguise(value, meant):
    assert integral(value) == meant


def test_numbers_of_json():
    assert [number(v) for v in (3, 2.5, 10**400, -(10**400))] == [3, 2.5, math.inf, -math.inf]
    assert all(math.isnan(number(v)) for v in (True, "3", None, [1]))


def test_four_numbers_or_none():
    found, bad = quads([[1, 2, 3, 4], [1, 2, 3], "abcd", [1, 2, True, 4], [1, 2, 10**400, 4], None])
    assert bad.tolist() == [False, True, True, True, False, True]
    assert found[0].tolist() == [1, 2, 3, 4]
    assert found[4].tolist() == [1, 2, math.inf, 4]
    assert np.isnan(found[1:4]).all()
    for empty in (quads([]), quads([[1, 2, 3, 4]])):
        assert empty[0].shape == (len(empty[1]), 4)


def test_collecting_goes_on_afterwards():
    with no_collecting():
        assert not gc.isenabled()
    with contextlib.suppress(KeyError), no_collecting():
        raise KeyError
    assert gc.isenabled()
