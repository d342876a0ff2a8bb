from __future__ import annotations

import numpy as np
import pytest

from coordvlm.reports.floor import floor_of, floor_span, floor_words
from tests.reports.conftest import make_contract, make_run


def test_model_sizes_come_from_the_resize_rule() -> None:
    truth = make_run().truth
    assert truth is not None
    floor = floor_of(truth, make_contract())  # 96 px images, shown at 96 px in patches of 16
    assert floor.half_patch == 8
    assert floor.half_step == pytest.approx(96 / 999 / 2)
    assert len(floor.iou) == len(truth.ann_ids)
    span = floor_span(floor)
    assert span is not None
    assert span[0] == pytest.approx(float(np.median(floor.error_px)))
    assert "half a merged patch, 8.0 px" in floor_words(floor)


def test_without_boxes_there_is_nothing_to_shade() -> None:
    truth = make_run().truth
    assert truth is not None
    empty = floor_of(truth.subset([]), make_contract())
    assert floor_span(empty) is None
    assert floor_span(None) is None
