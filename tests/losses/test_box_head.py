from __future__ import annotations

import pytest
import torch

from coordvlm.contracts import ModelOutput
from coordvlm.losses.box_head import HeadGIoU, HeadL1
from coordvlm.losses.giou import giou_loss
from coordvlm.losses.slots import Slots
from coordvlm.utils.errors import ConfigError
from tests.batches import RAGGED, make_batch
from tests.losses.checks import assert_is_a_term

#: Two of four samples have exactly one box.
SINGLE = (((0.1, 0.2, 0.5, 0.6),), (), ((0.0, 0.0, 1.0, 0.5),), RAGGED[0])


@pytest.mark.parametrize("at", ["end", "start"])
@pytest.mark.parametrize("term", [HeadL1, HeadGIoU])
def test_it_is_a_term(term: type[HeadL1], at: str) -> None:
    assert_is_a_term(term(at=at))


def given(boxes: torch.Tensor) -> Slots:
    return Slots(ModelOutput(box_head_end=boxes), make_batch(SINGLE))


def test_values_by_hand() -> None:
    found = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.0, 0.25, 1.0, 0.75]])
    l1, giou = HeadL1(at="end")(given(found)), HeadGIoU(at="end")(given(found))
    assert l1.per_item.tolist() == pytest.approx([0.0, 0.5], abs=1e-6)
    # overlap 1 x 0.25, union 0.75, hull 1 x 0.75: IoU = GIoU = 1/3
    assert giou.per_item.tolist() == pytest.approx([0.0, 2 / 3], abs=1e-6)
    total, count = giou.logs["head_iou"]
    assert (float(total), count) == (pytest.approx(4 / 3), 2)
    assert giou.item_sample.tolist() == [0, 2]
    assert torch.equal(giou.per_item, giou_loss(found, make_batch(SINGLE).query_box))


def test_only_samples_with_exactly_one_box_count() -> None:
    assert HeadL1(at="end").count(make_batch(SINGLE)) == 2
    assert HeadL1(at="end").count(make_batch([(), RAGGED[0]])) == 0
    assert HeadL1(at="end").group == HeadGIoU(at="start").group == "query"


def test_an_unknown_state_and_a_missing_output_are_named() -> None:
    with pytest.raises(ConfigError, match=r"box_head: at must be one of end, start, got 'last'"):
        HeadL1(at="last")
    with pytest.raises(ValueError, match=r"box_head_start is not set"):
        HeadL1(at="start")(given(torch.zeros(2, 4)))
