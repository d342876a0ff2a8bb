"""Each check of the first batch of clips can fail, and a right batch passes; the page shows the answer's tokens and its point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coordvlm.callbacks.clip_inspector import answer_tokens, check_clips, decoded_point, inspect_clips
from coordvlm.contracts import ClipBatch, Contract, ResizeRule
from coordvlm.reports.inspect_page import Check
from coordvlm.utils.errors import ContractError
from tests.clips import COORD_TOKEN, MARKERS, PATCH, QUESTIONS, SIZE, clips, tiny_clips

FRAMES = 3
T = tiny_clips(num_frames=FRAMES)
GIVEN = clips(QUESTIONS, ("circle", (10.25, 42.0), "a red ball"), frames=FRAMES)
SAMPLES = {c.id: c for c in GIVEN}
CONTRACT = Contract(
    coords="k999", num_bins=1000, scale=999, format="clip", order="none", prompt="{question}", class_list=False, markers=MARKERS,
    coord_token=COORD_TOKEN, end_token="<|im_end|>", resize=ResizeRule(mode="square", patch=PATCH, merge=1, size=(SIZE, SIZE)),
)
QUESTION, WORDS, POINT, TOKENS, ENDS, TIME, COLUMNS = (
    "every question is the annotated one", "every answer in words is the annotated one",
    "every answer that is a point is the annotated one",
    "coordinate tokens mean this point", "every answer ends", "frames are the clip's, in the order of time",
    "mode and frames stand in the same columns, seen in every clip",
)  # fmt: skip


def made() -> ClipBatch:
    return T.of(GIVEN)


def checked(batch: ClipBatch) -> list[Check]:
    return check_clips(batch, SAMPLES, T.tokenizer, CONTRACT)


def test_a_right_batch_passes() -> None:
    found = checked(made())
    assert [c.name for c in found] == [QUESTION, WORDS, POINT, TOKENS, ENDS, TIME, COLUMNS]
    assert all(c.ok for c in found), [(c.name, c.detail) for c in found if not c.ok]


def _swapped_questions(b: ClipBatch) -> ClipBatch:
    ids, mask = b.input_ids.clone(), b.attention_mask.clone()
    ids[[0, 2], : b.mode_col], mask[[0, 2], : b.mode_col] = ids[[2, 0], : b.mode_col], mask[[2, 0], : b.mode_col]
    return replace(b, input_ids=ids, attention_mask=mask)


def _other_words(b: ClipBatch) -> ClipBatch:
    target = b.text_target.clone()
    target[0] = target[-2]
    return replace(b, text_target=target)


def _axes_swapped(b: ClipBatch) -> ClipBatch:
    return replace(b, ask_xy=b.ask_xy.flip(1))


def _bin_moved(b: ClipBatch) -> ClipBatch:
    return replace(b, slot_bin=torch.stack((b.slot_bin[0] + 1, b.slot_bin[1])))


def _bins_swapped(b: ClipBatch) -> ClipBatch:
    return replace(b, slot_bin=b.slot_bin.flip(0))


def _no_end(b: ClipBatch) -> ClipBatch:
    return replace(b, text_is_end=torch.zeros_like(b.text_is_end))


def _frames_reversed(b: ClipBatch) -> ClipBatch:
    return replace(b, frames=b.frames.flip(1))


def _clips_mixed(b: ClipBatch) -> ClipBatch:
    return replace(b, frames=b.frames.roll(1, 1))


def _hidden_frame(b: ClipBatch) -> ClipBatch:
    mask = b.attention_mask.clone()
    mask[1, b.mode_col + 1] = False
    return replace(b, attention_mask=mask)


def _shifted_columns(b: ClipBatch) -> ClipBatch:
    return replace(b, image_pos=b.image_pos + 1)


@pytest.mark.parametrize(
    ("spoil", "fails"),
    [
        (_swapped_questions, QUESTION), (_other_words, WORDS), (_axes_swapped, POINT), (_bin_moved, TOKENS), (_bins_swapped, TOKENS),
        (_no_end, ENDS), (_frames_reversed, TIME), (_clips_mixed, TIME), (_hidden_frame, COLUMNS), (_shifted_columns, COLUMNS),
    ],
)  # fmt: skip
def test_each_check_fails_when_it_should(spoil: Callable[[ClipBatch], ClipBatch], fails: str) -> None:
    found = {c.name: c.ok for c in checked(spoil(made()))}
    assert not found[fails]


def test_a_wrong_batch_is_refused_and_its_page_says_which(tmp_path: Path) -> None:
    path = tmp_path / "first_batch.html"
    with pytest.raises(ContractError, match="nothing was trained"):
        inspect_clips(path, _frames_reversed(made()), SAMPLES, T.tokenizer, CONTRACT)
    assert "1 of 7 checks failed" in path.read_text(encoding="utf-8")


def test_the_page_shows_tokens_and_the_point_in_the_last_frame(tmp_path: Path) -> None:
    pages, _ = inspect_clips(tmp_path / "b.html", made(), SAMPLES, T.tokenizer, CONTRACT)
    words, point, _ = pages
    assert "".join(t.text for t in words.tokens) == "circle<|im_end|>"
    assert [t.kind for t in words.tokens][-1] == "end"
    assert all(t.supervised for t in words.tokens)
    assert [t.kind for t in point.tokens] == ["coord", "coord", "end"]
    assert words.prompt_text == f"{QUESTIONS[0]}[mode] z_1 .. z_{FRAMES}"
    assert point.prompt_text.startswith("[mode]")
    assert words.size == (SIZE * FRAMES, SIZE)
    (_, (x1, y1, x2, y2)) = point.true_boxes[0]
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((2 * SIZE + 10.25, 42.0))
    assert point.read_boxes is not None
    assert point.read_boxes[0][1] == pytest.approx((x1, y1, x2, y2), abs=0.03)
    text = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "k-coord" in text
    assert "k-end" in text


def test_only_a_point_has_coordinates() -> None:
    batch = made()
    assert decoded_point(batch, 0, CONTRACT) is None
    assert decoded_point(batch, 1, CONTRACT) == pytest.approx((10.25, 42.0), abs=0.5 * SIZE / 999 + 1e-6)
    assert [t.kind for t in answer_tokens(batch, 1, T.tokenizer)] == ["coord", "coord", "end"]
