from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from coordvlm.contracts import Encoded
from coordvlm.sequence.collate import SequenceEncoder, collate
from coordvlm.utils.errors import DataError
from tests.tiny import MERGE, Tiny, random_sample, tiny

SIDES = ((48, 32), (32, 32), (32, 64), (16, 16))
COUNTS = (3, 0, 8, 1)


@pytest.fixture(scope="module")
def t() -> Tiny:
    return tiny()


def encoded(t: Tiny, *, with_answer: bool = True) -> list[Encoded]:
    return [
        t.encoder.encode(random_sample(i, n, size), epoch=0, with_answer=with_answer)
        for i, (n, size) in enumerate(zip(COUNTS, SIDES, strict=True))
    ]


def test_every_row_predicts_the_token_after_it(t: Tiny) -> None:
    batch = t.encoder.collate(encoded(t))
    flat = batch.input_ids.flatten()
    assert torch.equal(flat[batch.text_row + 1], batch.text_target)
    assert torch.equal(flat[batch.slot_row + 1], torch.from_numpy(t.vocab.coord_ids)[batch.slot_bin])
    assert torch.equal(batch.text_is_end, batch.text_target == t.vocab.end_id)
    assert int(batch.text_is_end.sum()) == len(batch) == 4


def test_supervised_are_the_answer_tokens_each_once_and_nothing_else(t: Tiny) -> None:
    batch = t.encoder.collate(encoded(t))
    width = batch.input_ids.shape[1]
    want = {b * width + i for b in range(4) for i in range(int(batch.prompt_lengths[b]), int(batch.lengths[b]))}
    got = (torch.cat((batch.text_row, batch.slot_row)) + 1).tolist()
    assert len(got) == len(set(got))
    assert set(got) == want
    assert not set(got) & set(batch.image_pos.tolist())


def test_sequences_are_prompt_then_answer_padded_on_the_right(t: Tiny) -> None:
    items = encoded(t)
    batch = t.encoder.collate(items)
    for ids, e, p, n in zip(batch.input_ids.numpy(), items, batch.prompt_lengths.tolist(), batch.lengths.tolist(), strict=True):
        np.testing.assert_array_equal(ids[:n], np.concatenate((e.prompt_ids, e.answer_ids)))
        assert (ids[n:] == t.vocab.pad_id).all()
        assert p == len(e.prompt_ids)
    assert batch.input_ids.shape[1] == int(batch.lengths.max())


def test_image_positions_are_the_placeholders_in_the_order_of_the_features(t: Tiny) -> None:
    batch = t.encoder.collate(encoded(t))
    assert batch.image_pos.tolist() == torch.nonzero(batch.input_ids.flatten() == t.vocab.image_id).flatten().tolist()
    tokens = (batch.image_grid_thw.prod(-1) // MERGE**2).tolist()
    assert tokens == [w * h // (8 * MERGE) ** 2 for w, h in SIDES]
    assert torch.bincount(batch.image_pos // batch.input_ids.shape[1]).tolist() == tokens
    assert batch.pixels.dtype == torch.uint8
    assert len(batch.pixels) == int(batch.image_grid_thw.prod(-1).sum())


def test_a_box_holds_its_own_four_slots_in_order(t: Tiny) -> None:
    batch = t.encoder.collate(encoded(t))
    assert batch.box_slot.tolist() == torch.arange(4 * 12).view(12, 4).tolist()
    assert batch.slot_axis[batch.box_slot].tolist() == [[0, 1, 2, 3]] * 12
    assert batch.box_sample.tolist() == [0] * 3 + [2] * 8 + [3]
    slot_sample = batch.slot_row // batch.input_ids.shape[1]
    assert torch.equal(slot_sample[batch.box_slot], batch.box_sample[:, None].expand(-1, 4))
    assert batch.counts == {"text": len(batch.text_row), "slot": 48, "box": 12}


def test_box_prev_points_into_the_batch_at_the_same_words_of_the_same_sample(t: Tiny) -> None:
    items = encoded(t)
    batch = t.encoder.collate(items)
    descs = []
    for i, (n, size) in enumerate(zip(COUNTS, SIDES, strict=True)):
        answer = t.encoder.target.build(random_sample(i, n, size), epoch=0)
        descs += [(i, o.desc) for o in answer.objects]
    want = [m - 1 if m and descs[m] == descs[m - 1] else -1 for m in range(len(descs))]
    assert batch.box_prev.tolist() == want
    assert max(want) > 3  # one that had to be shifted


def test_values_are_the_unquantised_coordinates(t: Tiny) -> None:
    s = random_sample(0, 3, (48, 32))
    batch = t.encoder.collate([t.encoder.encode(s, epoch=0)])
    boxes = sorted((np.asarray(o.box_xyxy_px) / [48, 32, 48, 32]).tolist() for o in s.objects)
    np.testing.assert_allclose(sorted(batch.slot_value.view(-1, 4).tolist()), boxes, atol=1e-6)
    assert float((batch.slot_bin / 999 - batch.slot_value).abs().max()) <= 0.5 / 999 + 1e-6


def test_a_batch_without_any_object_has_empty_slots_and_an_end_for_each(t: Tiny) -> None:
    items = [t.encoder.encode(random_sample(i, 0, (32, 32)), epoch=0) for i in range(2)]
    batch = t.encoder.collate(items)
    assert batch.counts == {"text": 2, "slot": 0, "box": 0}
    assert batch.box_slot.shape == (0, 4)
    assert batch.slot_bin.dtype == batch.slot_row.dtype == batch.box_prev.dtype == torch.int64
    assert batch.slot_value.dtype == torch.float32


def test_prompts_alone_supervise_nothing(t: Tiny) -> None:
    batch = t.encoder.collate(encoded(t, with_answer=False))
    assert batch.counts == {"text": 0, "slot": 0, "box": 0}
    assert torch.equal(batch.lengths, batch.prompt_lengths)


def test_a_sequence_that_is_too_long_is_refused_by_image(t: Tiny) -> None:
    length = len(t.encoder.prompt.ids(6)) + len(t.encoder.target.build(random_sample(41, 3, (48, 32)), epoch=0).ids)
    e = t.encoder

    def limited(n: int) -> SequenceEncoder:
        return SequenceEncoder(e.prompt, e.target, e.vocab, resize=e.resize, image_fn=e.image_fn, max_length=n)

    with pytest.raises(DataError, match=f"image 41: prompt and answer must fit into {length - 1} tokens.*got {length}"):
        limited(length - 1).encode(random_sample(41, 3, (48, 32)), epoch=0)
    assert len(limited(length).encode(random_sample(41, 3, (48, 32)), epoch=0).answer_ids) > 0


@pytest.mark.parametrize("bad", [-1, 1000])
def test_a_bin_outside_the_grid_is_refused(t: Tiny, bad: int) -> None:
    e = encoded(t)[0]
    bins = e.slot_bin.copy()
    bins[2] = bad
    with pytest.raises(ValueError, match=r"slot bins must lie in \[0, 1000\)"):
        collate([replace(e, slot_bin=bins)], t.vocab, merge=MERGE)


def test_a_value_that_is_no_number_is_refused(t: Tiny) -> None:
    e = encoded(t)[0]
    values = e.slot_value.copy()
    values[0] = np.nan
    with pytest.raises(ValueError, match="slot values must be finite"):
        collate([replace(e, slot_value=values)], t.vocab, merge=MERGE)


def test_truncated_objects_are_counted_over_the_batch(t: Tiny) -> None:
    items = [replace(e, num_dropped=n) for e, n in zip(encoded(t), (0, 2, 0, 5), strict=True)]
    assert t.encoder.collate(items).num_dropped == 7
