from __future__ import annotations

import numpy as np
import pytest

from coordvlm.data.checks import RULES, Fault, box_faults, clip_boxes, count_faults, first_of_each, is_clipped

SIZE = np.array([[40.0, 30.0]])


@pytest.mark.parametrize(("box", "fault"), [
    ((0, 0, 40, 30), Fault.NONE), ((-1, -1, 41, 31), Fault.NONE), ((-1.01, 0, 5, 5), Fault.OUT_OF_FRAME),
    ((0, 0, 5, 31.01), Fault.OUT_OF_FRAME), ((40, 0, 40.9, 5), Fault.OUT_OF_FRAME), ((5, 5, 5, 9), Fault.ZERO_AREA),
    ((5, 5, 9, 5), Fault.ZERO_AREA), ((9, 5, 5, 9), Fault.INVERTED), ((9, 5, 5, 5), Fault.INVERTED),
    ((np.nan, 0, 5, 5), Fault.NOT_FINITE), ((0, 0, np.inf, 5), Fault.NOT_FINITE), ((50, 50, 45, 60), Fault.INVERTED),
])
def test_the_fault_of_a_box(box, fault):
    assert box_faults(np.array([box], dtype=np.float64), SIZE).tolist() == [fault]


def test_no_boxes_have_no_faults():
    none = np.zeros((0, 4))
    assert box_faults(none, np.zeros((0, 2))).shape == (0,)
    assert is_clipped(none, np.zeros((0, 2))).shape == (0,)


def test_clipping_counts_what_it_moves_but_not_rounding_noise():
    boxes = np.array([[-0.5, 0, 5, 5], [30.1, 0, 30.1 + 9.9 + 1e-9, 5], [1, 1, 5, 5]])
    wh = np.repeat(SIZE, 3, 0)
    assert is_clipped(boxes, wh).tolist() == [True, False, False]
    assert clip_boxes(boxes, wh).tolist() == [[0, 0, 5, 5], [30.1, 0, 40, 5], [1, 1, 5, 5]]


def test_counts_are_by_reason_without_zeros():
    assert count_faults(np.array([0, 7, 7, 3], np.uint8)) == {"unknown_category": 1, "zero_area": 2}
    assert count_faults(np.zeros(3, np.uint8)) == {}


def test_the_first_of_each_value():
    assert first_of_each(np.array([5, 3, 5, 5, 3, 1])).tolist() == [True, True, False, False, False, True]


def test_every_fault_has_a_rule():
    assert set(RULES) == set(Fault) - {Fault.NONE}
