import pickle
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from tests.batches import END, NUM_TEXT, RAGGED, hf_labels, make_batch


def test_every_row_predicts_the_token_after_it() -> None:
    batch = make_batch(RAGGED)
    flat = batch.input_ids.flatten()
    assert torch.equal(flat[batch.slot_row + 1] - NUM_TEXT, batch.slot_bin)
    assert torch.equal(flat[batch.text_row + 1], batch.text_target)
    assert torch.equal(batch.text_is_end, batch.text_target == END)


def test_supervised_rows_are_text_and_slots_and_nothing_twice() -> None:
    batch = make_batch(RAGGED)
    rows = torch.cat((batch.text_row, batch.slot_row))
    assert len(rows.unique()) == len(rows) == int((hf_labels(batch) >= 0).sum())
    assert batch.counts == {"text": len(batch.text_row), "slot": len(batch.slot_row), "box": len(batch.box_slot)}


def test_a_box_holds_its_own_four_slots_of_its_own_sample() -> None:
    batch = make_batch(RAGGED)
    assert batch.slot_axis[batch.box_slot].tolist() == [[0, 1, 2, 3]] * 6
    slot_sample = batch.slot_row // batch.input_ids.shape[1]
    assert torch.equal(slot_sample[batch.box_slot], batch.box_sample[:, None].expand(-1, 4))
    assert batch.box_prev.tolist() == [-1, 0, -1, -1, 3, 4]


def test_moving_keeps_dtypes_values_and_everything_that_is_no_tensor() -> None:
    batch = make_batch(RAGGED)
    moved = batch.to("cpu", non_blocking=True)
    for f in fields(batch):
        a, b = getattr(batch, f.name), getattr(moved, f.name)
        assert (torch.equal(a, b) and a.dtype == b.dtype) if isinstance(a, torch.Tensor) else a == b
    assert len(moved) == 4


def test_it_is_frozen_and_crosses_processes() -> None:
    batch = make_batch(RAGGED)
    with pytest.raises(FrozenInstanceError):
        batch.window = None  # type: ignore[misc]
    assert torch.equal(pickle.loads(pickle.dumps(batch)).input_ids, batch.input_ids)


def test_a_batch_without_boxes_has_empty_indices_of_the_right_shape() -> None:
    batch = make_batch([(), ()])
    assert batch.box_slot.shape == (0, 4)
    assert batch.slot_row.shape == batch.slot_value.shape == (0,)
    assert batch.counts["text"] == 2  # the two ends of turn
