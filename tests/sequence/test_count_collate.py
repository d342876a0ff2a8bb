"""The batch of questions: rows, targets and what lies behind each image token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLConfig, Qwen2VLModel, Qwen3VLConfig, Qwen3VLModel

from coordvlm.contracts import Batch, Question
from coordvlm.sequence.count_collate import cells_of
from tests.counting import ASK, count_sample, counting
from tests.tiny import MERGE, PATCH

T = counting()
SIDES = ((48, 32), (32, 32), (32, 64), (16, 96))
COUNTS = (5, 0, 3, 1)
CELL = PATCH * MERGE


def batch(seed: int = 0, **settings: Any) -> Batch:
    encoder = T.encoder(**settings)
    samples = [count_sample(10 * seed + i, n, size) for i, (n, size) in enumerate(zip(COUNTS, SIDES, strict=True))]
    return encoder.collate([encoder.encode(s, epoch=seed) for s in samples])


FAMILIES = {"qwen2": (Qwen2VLConfig, Qwen2VLModel), "qwen2.5": (Qwen2_5_VLConfig, Qwen2_5_VLModel), "qwen3": (Qwen3VLConfig, Qwen3VLModel)}


@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_equal_the_library_of_every_family(family: str, text_first: bool) -> None:
    config_class, model_class = FAMILIES[family]
    b = batch(text_first=text_first)
    start = T.tokenizer.convert_tokens_to_ids("<|vision_start|>")
    config = config_class(image_token_id=T.vocab.image_id, vision_start_token_id=start, vision_config={"spatial_merge_size": MERGE})
    with torch.device("meta"):
        model = model_class(config)
    mask = torch.arange(b.input_ids.shape[1]) < b.lengths[:, None]
    types = ((b.input_ids == T.vocab.image_id) & mask).int()
    theirs, _ = model.get_rope_index(b.input_ids, types, image_grid_thw=b.image_grid_thw, attention_mask=mask.long())
    assert len(b.lengths.unique()) > 1
    assert torch.equal(b.position_ids[:, mask], theirs[:, mask])


def test_rows_are_where_the_three_tokens_stand() -> None:
    b = batch()
    ids = torch.tensor([T.vocab.marker_ids[t] for t in ASK])
    assert torch.equal(b.input_ids.flatten()[b.ask_row], ids.expand(4, 3))
    assert b.ask_sample.tolist() == [0, 1, 2, 3]
    assert (b.ask_row // b.input_ids.shape[1])[:, 0].tolist() == [0, 1, 2, 3]
    assert torch.equal(b.lengths, b.prompt_lengths)
    last = b.ask_row[:, 2] - torch.arange(4) * b.input_ids.shape[1]
    assert torch.equal(last + 1, b.lengths)


def test_targets_are_the_questions() -> None:
    done = 0
    for seed in range(6):
        b = batch(seed)
        for i, q in enumerate(b.questions):
            assert bool(b.ask_has_xy[i]) == (q.marked < q.num) == (q.target is not None)
            assert bool(b.ask_done[i]) == (q.marked == q.num)
            if q.target is not None:
                np.testing.assert_allclose(b.ask_xy[i], 2 * q.target - 1, atol=1e-6)
            else:
                assert b.ask_xy[i].tolist() == [0, 0]
        done += int(b.ask_done.sum())
        assert b.ask_has_done.all()
    assert 6 < done < 24


def test_slots_x_and_y_are_read_at_x_and_y() -> None:
    b = batch(mode="regression")
    asked = b.ask_row[b.ask_has_xy]
    assert torch.equal(b.slot_row.view(-1, 2), asked[:, :2])
    assert b.slot_axis.tolist() == [0, 1] * 3
    np.testing.assert_allclose(b.slot_value.view(-1, 2) * 2 - 1, b.ask_xy[b.ask_has_xy], atol=1e-6)
    assert float((b.slot_bin / 999 - b.slot_value).abs().max()) <= 0.5 / 999 + 1e-6
    assert b.box_slot.shape == (0, 4)


def test_counts_are_the_labels() -> None:
    for seed in range(4):
        b = batch(seed)
        assert b.counts == {
            "text": 0, "slot": 2 * int(b.ask_has_xy.sum()), "box": 0, "point": int(b.ask_has_xy.sum()), "done": int(b.ask_has_done.sum()),
            "image_token": len(b.image_pos), "hit": int(b.token_hit.sum()),
        }
        assert len(b.slot_row) == b.counts["slot"]
        assert len(b.text_row) == 0


@pytest.mark.parametrize("target", ["next", "nearest"])
def test_every_unmarked_object_is_found_again_from_its_token(target: str) -> None:
    for seed in range(5):
        b = batch(seed, target=target)
        place = (b.token_centre + b.token_offset * b.token_half).double()
        assert float(b.token_offset.abs().max()) <= 1 + 1e-6
        for i, q in enumerate(b.questions):
            mine = b.token_ask == i
            hits = place[mine][b.token_hit[mine] > 0].numpy()
            unmarked = 2 * q.unmarked.astype(float) - 1
            assert all(np.abs(unmarked - h).sum(1).min() < 1e-5 for h in hits), "a hit is an object"
            cells = {tuple(c) for c in np.minimum((q.unmarked * np.array(SIDES[i]) // CELL), np.array(SIDES[i]) / CELL - 1).tolist()}
            assert len(hits) == len(cells)
            following = b.token_next[mine]
            if target == "nearest":
                assert torch.equal(following, b.token_hit[mine] > 0)
            elif q.target is None:
                assert not following.any()
            else:
                assert int(following.sum()) == 1
                np.testing.assert_allclose(place[mine][following][0], 2 * q.target - 1, atol=1e-5)


def test_cells_tile_the_image() -> None:
    b = batch()
    low, high = b.token_centre - b.token_half, b.token_centre + b.token_half
    for i, (width, height) in enumerate(SIDES):
        mine = b.token_ask == i
        assert int(mine.sum()) == width * height // CELL**2
        assert low[mine].min(0).values.tolist() == pytest.approx([-1, -1])
        assert high[mine].max(0).values.tolist() == pytest.approx([1, 1])
        assert float((4 * b.token_half[mine].prod(1)).sum()) == pytest.approx(4)
    assert torch.equal(b.token_ask, b.image_pos // b.input_ids.shape[1])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_token_is_the_image_at_its_cell(family: str) -> None:
    """The image changes in one cell: of all tokens the tower's feature of that cell's token moves most, in every family."""
    encoder, tower = T.encoder(style="none"), T.backbone(family).eval()
    for x, y in ((0, 0), (3, 1), (5, 2), (1, 2)):
        sample = count_sample(1, [(CELL * (x + 0.5), CELL * (y + 0.5))], (6 * CELL, 3 * CELL))
        b = encoder.collate([encoder.encode(sample, epoch=0, with_answer=True)])
        sample.image.paste((255, 0, 255), (CELL * x, CELL * y, CELL * (x + 1), CELL * (y + 1)))
        changed = encoder.collate([encoder.encode(sample, epoch=0)])
        with torch.no_grad():
            before, after = (tower.image_features(z.pixels, z.image_grid_thw).tokens for z in (b, changed))
        moved = int((before - after).norm(dim=-1).argmax())
        assert moved == 6 * y + x
        want = [(2 * x + 1) / 6 - 1, (2 * y + 1) / 3 - 1]
        np.testing.assert_allclose(b.token_centre[moved], want, atol=1e-6)


def question(points: list[tuple[float, float]], *, target: bool = True) -> Question:
    u = np.asarray(points, dtype=np.float32).reshape(-1, 2)
    return Question("dot", len(u), 0, u[0] if target and len(u) else None, u, None, np.arange(3))


def test_cells_by_hand() -> None:
    """2 rows of 4: a point inside, two in one cell (the first stays), one on an inner border, the far corner."""
    c = cells_of(question([(0.6, 0.1), (0.3, 0.9), (0.45, 0.6), (0.25, 0.25), (1.0, 1.0)]), 2, 4, any_unmarked=False)
    assert c.hit.tolist() == [0, 1, 1, 0, 0, 1, 0, 1]
    assert c.next.tolist() == [False, False, True, False, False, False, False, False]
    np.testing.assert_allclose(c.centre[[0, 5, 7]], [(-0.75, -0.5), (-0.25, 0.5), (0.75, 0.5)], atol=1e-6)
    np.testing.assert_allclose(c.half, np.tile((0.25, 0.5), (8, 1)))
    np.testing.assert_allclose(c.offset[2], (-0.2, -0.6), atol=1e-5)
    np.testing.assert_allclose(c.offset[5], (-0.6, 0.6), atol=1e-5)  # of (0.3, 0.9), the first in order
    np.testing.assert_allclose(c.offset[1], (-1, 0), atol=1e-5)  # on the border: the cell behind it
    np.testing.assert_allclose(c.offset[7], (1, 1), atol=1e-5)
    assert (c.offset[[0, 3, 4, 6]] == 0).all()


def test_nothing_unmarked_is_nothing_hit() -> None:
    c = cells_of(question([]), 2, 2, any_unmarked=True)
    assert not c.hit.any()
    assert not c.next.any()


def test_nothing_known_has_no_labels() -> None:
    encoder = T.encoder()
    b = encoder.collate([encoder.encode(count_sample(i, n), epoch=0, with_answer=False) for i, n in enumerate((0, 4))])
    assert b.counts == {"text": 0, "slot": 0, "box": 0, "point": 0, "done": 0, "image_token": 0, "hit": 0}
    assert not b.ask_has_hit.any()
    assert [q.marked for q in b.questions] == [0, 0]
    assert b.slot_row.shape == (0,)
    assert b.slot_bin.dtype == b.slot_row.dtype == torch.int64


def test_mode_regression_teaches_no_done() -> None:
    b = batch(mode="regression")
    assert b.ask_has_done.tolist() == [False] * 4
    assert b.ask_has_hit.tolist() == [True] * 4  # also where there is nothing
    assert b.ask_has_xy.tolist() == [True, False, True, True]


def test_dtypes_and_devices_of_the_contract() -> None:
    b = batch().to("cpu").pin_memory() if torch.cuda.is_available() else batch().to("cpu")
    assert b.ask_row.dtype == b.ask_sample.dtype == b.token_ask.dtype == torch.int64
    assert b.ask_has_xy.dtype == b.ask_has_done.dtype == b.ask_has_hit.dtype == b.token_next.dtype == torch.bool
    for name in ("ask_xy", "ask_done", "token_centre", "token_half", "token_hit", "token_offset", "slot_value"):
        assert getattr(b, name).dtype == torch.float32
    assert b.slot_axis.dtype == torch.uint8
