from __future__ import annotations

import numpy as np
import pytest

from coordvlm.contracts import Decoded
from coordvlm.coords.grid import Digits, Grid
from coordvlm.sequence.records import box_px, check_readout, check_score, in_range, judge, number_slots, score_of, token_slots
from coordvlm.utils.errors import ConfigError

K999 = Grid("k999", 1000, 999)


def test_scores() -> None:
    parts = {"geom": 0.5, "desc": 0.4}
    assert [score_of(parts, s) for s in ("geom_desc", "geom", "desc", "one")] == [0.2, 0.5, 0.4, 1.0]
    assert score_of({"desc": 0.4}, "geom_desc") == 0.0


def test_token_slots_read_at_their_positions() -> None:
    n = np.arange(5, dtype=np.float32)
    d = Decoded(0, np.arange(5), n, np.array([-1, 999, -1, 0, 500]), n / 10, n / 100, n, False, 0.0)
    slots = token_slots(d, [1, 3], K999)
    assert [(s.bin, s.argmax) for s in slots] == [(999, 1.0), (0, 0.0)]
    np.testing.assert_allclose([(s.expectation, s.local) for s in slots], [(0.1, 0.01), (0.3, 0.03)], rtol=1e-6)


def test_number_slots() -> None:
    assert [s.bin for s in number_slots((1, 2.4, 3.6, 4), Digits("pixel"), (10, 20))] == [1, 2, 4, 4]
    assert [s.local for s in number_slots((1, 2), Digits("pixel"), (10, 20))] == [0.1, 0.1]
    assert [s.argmax for s in number_slots((0, 999), K999, (10, 20))] == [0, 1]
    assert number_slots((1, float("inf"), 2, 3), K999, (10, 20)) == ()


def test_range_and_area() -> None:
    assert in_range((0, 999), K999, (1, 1))
    assert not in_range((0, 1000), K999, (1, 1))
    assert in_range((0, 1000), Digits("qwen1000"), (1, 1))
    assert box_px(number_slots((0, 0, 999, 999), K999, (1, 1)), "argmax", (640, 480)) == (0, 0, 640, 480)
    nan = float("nan")
    for box in ((0, 0, 0, 1), (0, 2, 1, 1), (0, 0, nan, 1)):
        assert judge("repaired", box, inside=True) == "degenerate"
    assert judge("repaired", (0, 0, 1, 1), inside=True) == "repaired"
    assert judge("ok", (0, 0, 0, 0), inside=False) == "out_of_range"
    assert judge("missing_desc", (0, 0, 0, 0), inside=False) == "missing_desc"


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"decode\.score must be one of geom_desc, geom, desc, one, got 'x'"):
        check_score("x")
    with pytest.raises(ConfigError, match=r"decode\.readout must be one of argmax, expectation, local, got 'x'"):
        check_readout("x")
