from __future__ import annotations

import json

import pytest

from coordvlm.coords.resize import smart_resize
from coordvlm.utils.errors import DataError
from tests.data_root import peer_data


def test_published_cases():
    cases = json.loads((peer_data() / "peer_cases" / "smart_resize.json").read_text())["cases"]
    assert len(cases) > 10
    for case in cases:
        options = {k: case[k] for k in ("factor", "min_pixels", "max_pixels")}
        wanted = case["transformers_5_23"]
        if isinstance(wanted, dict):
            with pytest.raises(DataError, match="at most 200 times"):
                smart_resize(case["height"], case["width"], **options)
        else:
            assert smart_resize(case["height"], case["width"], **options) == tuple(wanted), case["why"]


def test_an_image_by_hand():
    assert smart_resize(100, 33, factor=32, min_pixels=32, max_pixels=10**6) == (96, 32)
    assert smart_resize(100, 33, factor=32, min_pixels=32, max_pixels=2048) == (64, 32)


def test_an_empty_or_very_thin_image_is_refused():
    with pytest.raises(DataError, match="at least one pixel"):
        smart_resize(0, 5, factor=32, min_pixels=1, max_pixels=100)
    with pytest.raises(DataError, match=r"201 x 1 px.*201"):
        smart_resize(1, 201, factor=32, min_pixels=1, max_pixels=100)
