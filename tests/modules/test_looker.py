"""Answers by every way of looking."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from coordvlm.contracts import ClipBatch
from coordvlm.modules.looker import LOOKS, Looker, without_frames, without_text
from coordvlm.utils.errors import ConfigError
from tests.clips import QUESTIONS, TinyClips, tiny_clips


@pytest.fixture(scope="module")
def t() -> TinyClips:
    return tiny_clips(double=True)


def looker(t: TinyClips, **settings: Any) -> Looker:
    options = {
        "main": "fine", "arms": LOOKS, "max_new_tokens": 4, "window": 16, "bin_values": t.grid.bin_values().double(),
        "point_tokens": True, **settings,
    }
    return Looker(t.model, t.tokenizer, **options)


def found(t: TinyClips, batch: ClipBatch) -> dict[str, Any]:
    with torch.no_grad():
        return {arm: seen for arm, (_, seen) in looker(t).passes(batch).items()}


def test_controls_are_the_fine_pass_with_one_thing_taken_away(t: TinyClips) -> None:
    batch = t.batch()
    seen = found(t, batch)
    assert tuple(seen) == LOOKS
    cache = t.model.encode(batch.frames)
    queries = seen["fine"].queries.view(3, 3, -1)
    with torch.no_grad():
        swapped = t.model.fine_at(batch, cache, queries.roll(1, 0))
    torch.testing.assert_close(seen["swap"].z, swapped.z, atol=1e-9, rtol=0)
    for name, shown in (("no_image", without_frames(batch)), ("no_text", without_text(batch))):
        with torch.no_grad():
            taken = t.model.encode(shown.frames)
            expected = t.model.fine(shown, taken, t.model.coarse(shown, taken))
        torch.testing.assert_close(seen[name].z, expected.z, atol=1e-9, rtol=0)
        assert (seen[name].z - seen["fine"].z).abs().max() > 1e-6
    assert (seen["random"].queries - seen["fine"].queries).abs().max() > 0.5


def test_without_text_the_question_changes_nothing(t: TinyClips) -> None:
    one, other = t.batch(), t.batch(questions=[QUESTIONS[2], QUESTIONS[0], ""])
    at = slice(one.mode_col, None)
    torch.testing.assert_close(found(t, one)["no_text"].z, found(t, other)["no_text"].z, atol=1e-5, rtol=0)
    assert (found(t, one)["fine"].hidden[:, at] - found(t, other)["fine"].hidden[:, at]).abs().max() > 1e-3


def test_without_frames_the_frames_change_nothing(t: TinyClips) -> None:
    one, other = t.batch(), t.batch()
    other = replace(other, frames=255 - other.frames)
    torch.testing.assert_close(found(t, one)["no_image"].hidden, found(t, other)["no_image"].hidden, atol=1e-9, rtol=0)


def test_frames_are_encoded_twice_for_all_ways_of_looking() -> None:
    """Once, and once more where they are grey."""
    t = tiny_clips(iterations=2)
    with torch.no_grad():
        looker(t, bin_values=t.grid.bin_values()).passes(t.batch())
    assert t.model.vision.calls == 2


def test_one_clip_alone_has_no_other_to_swap_with(t: TinyClips) -> None:
    assert "swap" not in found(t, t.batch(questions=["Which?"], answers=["no"]))


def test_questions_about_one_video_are_not_swapped_with_each_other(t: TinyClips) -> None:
    batch = t.batch()
    batch = replace(batch, sources=("a", "b", "b"))
    seen = found(t, batch)
    own, swapped = (seen[arm].queries.view(3, 3, -1) for arm in ("fine", "swap"))
    torch.testing.assert_close(swapped, own[[2, 0, 0]], atol=0, rtol=0)
    assert "swap" not in found(t, replace(batch, sources=("b", "b", "b")))


def test_answers_carry_the_loss_of_the_truth(t: TinyClips) -> None:
    batch = t.batch(answers=["circle", (10.0, 31.0), "no"])
    answers = looker(t).ask(batch, ("local",))["local"]
    with torch.no_grad():
        out = t.model(batch, {"text_nll", "text_correct", "slot_logits", "slot_lse", "slot_correct"})["fine"][-1]
    own = out.slot_logits.gather(1, batch.slot_bin[:, None])[:, 0]
    width = batch.input_ids.shape[1]
    for b, prediction in enumerate(answers):
        arm = next(a for a in prediction.arms if a.arm == "fine")
        words, slots = (torch.div(r, width, rounding_mode="floor") == b for r in (batch.text_row, batch.slot_row))
        expected = out.text_nll[words].sum() + (out.slot_lse - own)[slots].sum()
        assert arm.nll == pytest.approx(float(expected), abs=1e-4)
        assert arm.num_tokens == int(words.sum() + slots.sum())
        assert arm.num_correct == int(out.text_correct[words].sum() + out.slot_correct[slots].sum())


def test_tokens_of_points_that_are_not_trained_count_for_nothing(t: TinyClips) -> None:
    batch = t.batch(answers=["circle", (10.0, 31.0), "no"])
    counted, left = ({p.sample_id: p.arms for p in looker(t, point_tokens=k).ask(batch, ("local",))["local"]} for k in (True, False))
    words, point = batch.ids[0], batch.ids[1]
    assert left[words] == counted[words]
    assert {(a.nll, a.num_tokens, a.num_correct) for a in left[point]} == {(0.0, 0, 0)}
    assert {a.num_tokens for a in counted[point]} == {3}


def test_answers_do_not_depend_on_the_batch_but_for_the_swap(t: TinyClips) -> None:
    batch = t.batch()
    together = looker(t).ask(batch, ("local",))["local"]
    (alone,) = looker(t).ask(t.batch(questions=QUESTIONS[:1], answers=["circle"]), ("local",))["local"]
    mine = {a.arm: a.text for a in together[0].arms if a.arm != "swap"}
    assert mine == {a.arm: a.text for a in alone.arms}


@pytest.mark.parametrize(("settings", "message"), [
    ({"arms": ("fine", "blind")}, "decode.arms knows coarse, fine, auto, swap, random, no_image, no_text, got 'blind'"),
    ({"arms": ("coarse",)}, "must contain the arm that is reported, 'fine'"),
    ({"max_new_tokens": 0}, "decode.max_new_tokens must be at least 1, got 0"),
])  # fmt: skip
def test_settings_without_a_meaning_are_refused(t: TinyClips, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        looker(t, **settings)
