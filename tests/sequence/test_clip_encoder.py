"""Clips -> sequences: what stands where, what predicts what, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from coordvlm.coords.grid import Digits, Grid
from coordvlm.sequence.clip_encoder import ClipEncoder
from coordvlm.utils.errors import ConfigError, DataError
from tests.clips import ANSWERS, QUESTIONS, SIZE, TinyClips, random_clip, tiny_clips


@pytest.fixture(scope="module")
def t() -> TinyClips:
    return tiny_clips()


def test_mode_frames_and_answers_stand_in_the_same_columns(t: TinyClips) -> None:
    batch = t.batch()
    lengths = [len(t.tokenizer.encode(q, add_special_tokens=False)) if q else 0 for q in QUESTIONS]
    assert batch.mode_col == max(lengths)
    assert batch.answer_col == batch.mode_col + 1 + 3
    for b, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        row, seen = batch.input_ids[b], batch.attention_mask[b]
        assert t.tokenizer.decode(row[batch.mode_col - lengths[b] : batch.mode_col]) == question
        words = [*t.tokenizer.encode(answer, add_special_tokens=False), t.model.vocab.end_id]
        assert row[batch.answer_col : batch.answer_col + len(words)].tolist() == words
        assert torch.nonzero(seen).flatten().tolist() == list(range(batch.mode_col - lengths[b], batch.answer_col + len(words)))
        assert batch.position_ids[b][seen].tolist() == list(range(int(seen.sum())))
        assert (int(batch.lengths[b]), int(batch.prompt_lengths[b])) == (lengths[b] + 4 + len(words), lengths[b] + 4)
    assert batch.image_pos.view(3, 3).tolist() == [
        [b * batch.input_ids.shape[1] + batch.mode_col + 1 + f for f in range(3)] for b in range(3)
    ]


def test_every_row_predicts_the_token_after_it(t: TinyClips) -> None:
    batch = t.batch(answers=[ANSWERS[0], (10.0, 31.0), ANSWERS[1]])
    flat = batch.input_ids.flatten()
    assert (flat[batch.text_row + 1] == batch.text_target).all()
    assert (batch.text_is_end == (batch.text_target == t.model.vocab.end_id)).all()
    assert int(batch.text_is_end.sum()) == 3
    coords = torch.as_tensor(t.model.vocab.coord_ids)
    assert (flat[batch.slot_row + 1] == coords[batch.slot_bin]).all()
    rows = torch.cat((batch.text_row, batch.slot_row)).sort().values
    width = batch.input_ids.shape[1]
    answers = [b * width + c - 1 for b in range(3) for c in range(batch.answer_col, width) if batch.attention_mask[b, c]]
    assert rows.tolist() == answers


def test_a_point_is_two_coordinates_of_its_frame(t: TinyClips) -> None:
    clip = random_clip(0, "Where?", (21.0, 10.5), frames=3)
    batch = t.of([clip, random_clip(1, "", "no", frames=3)])
    np.testing.assert_allclose(batch.slot_value, [21 / SIZE, 10.5 / SIZE], atol=1e-6)
    np.testing.assert_allclose(t.grid.bin_values()[batch.slot_bin], [0.5, 0.25], atol=1 / 999)
    assert batch.slot_axis.tolist() == [0, 1]
    np.testing.assert_allclose(batch.ask_xy, [[0.0, -0.5]], atol=1e-6)
    assert batch.ask_sample.tolist() == [0]
    assert batch.ask_row.tolist() == [[batch.answer_col - 1] * 3]
    assert {k: batch.counts[k] for k in ("slot", "point", "frame")} == {"slot": 2, "point": 1, "frame": 6}
    assert batch.counts["text"] == len(batch.text_row)


@pytest.mark.parametrize("point", [(0.0, 0.0), (float(SIZE), float(SIZE))])
def test_corners_of_the_frame_are_places(t: TinyClips, point: tuple[float, float]) -> None:
    batch = t.batch(questions=["Where?"], answers=[point])
    assert batch.slot_bin.tolist() == ([0, 0] if point == (0.0, 0.0) else [999, 999])


def test_frames_are_resized_each_by_itself_and_kept_where_they_fit(t: TinyClips) -> None:
    fits, large = random_clip(0, "", "no", frames=3), random_clip(1, "", "no", frames=3, size=84)
    frames = t.of([fits, large]).frames
    assert frames.dtype == torch.uint8
    np.testing.assert_array_equal(frames[0].numpy().transpose(0, 2, 3, 1), fits.frames)
    for mine, source in zip(frames[1].numpy(), large.frames, strict=True):
        theirs = np.asarray(Image.fromarray(source).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(mine.transpose(1, 2, 0), theirs)


def test_a_wide_frame_keeps_its_relative_places(t: TinyClips) -> None:
    wide = np.zeros((3, 20, 80, 3), dtype=np.uint8)
    clip = replace(random_clip(0, "Where?", (60.0, 5.0), frames=3), frames=wide, image=Image.fromarray(wide[-1]), width=80, height=20)
    batch = t.of([clip])
    assert batch.frames.shape == (1, 3, 3, SIZE, SIZE)
    np.testing.assert_allclose(batch.slot_value, [0.75, 0.25], atol=1e-6)
    assert batch.sizes == ((80, 20),)


def test_without_answers_nothing_is_supervised(t: TinyClips) -> None:
    batch = t.batch(with_answer=False)
    assert batch.input_ids.shape[1] == batch.answer_col
    assert len(batch.text_row) == len(batch.slot_row) == 0
    assert (batch.counts["text"], batch.counts["frame"]) == (0, 9)


@pytest.mark.parametrize(("answer", "message"), [
    ("", "a clip needs an answer: words or a point"),
    ("circle<|im_end|>", "an answer must not contain the end-of-turn token"),
    ((50.0, 3.0), "the point must lie within 42 x 42 px"),
    ((-0.1, 3.0), "the point must lie within 42 x 42 px"),
    ((float("nan"), 3.0), "the point must lie within 42 x 42 px"),
    ("word " * 300, "question, frames and answer must have at most 256 tokens"),
])  # fmt: skip
def test_what_is_no_answer_is_refused_with_the_clip(t: TinyClips, answer: str | tuple[float, float], message: str) -> None:
    clip = replace(random_clip(0, "Where?", answer, frames=3), meta={"where": "captions.jsonl:7"})
    with pytest.raises(DataError, match=message) as raised:
        t.encoder.encode(clip, epoch=0)
    assert "captions.jsonl:7" in str(raised.value)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_clip_of_another_length_is_refused(t: TinyClips, frames: int) -> None:
    with pytest.raises(DataError, match="a clip must have 3 frames") as raised:
        t.encoder.encode(random_clip(0, "", "no", frames=frames), epoch=0)
    assert str(frames) in str(raised.value)


def test_settings_without_a_meaning_are_refused(t: TinyClips) -> None:
    rest = {"num_frames": 3, "size": SIZE, "max_length": 256}
    with pytest.raises(ConfigError, match=r"sequence.prompt must contain \{question\}, got 'Say:'"):
        ClipEncoder(t.tokenizer, t.model.vocab, Grid("k999", 1000, 999), prompt="Say:", **rest)
    with pytest.raises(ConfigError, match="coords=pixel has no bins"):
        ClipEncoder(t.tokenizer, t.model.vocab, Digits("pixel"), prompt="{question}", **rest)


def test_a_prompt_is_written_around_a_question_and_left_out_where_there_is_none(t: TinyClips) -> None:
    made = ClipEncoder(t.tokenizer, t.model.vocab, t.grid, prompt="Q: {question} A:", num_frames=3, size=SIZE, max_length=256)
    assert t.tokenizer.decode(made.encode(random_clip(0, "Which?", "no", frames=3), epoch=0).question_ids) == "Q: Which? A:"
    assert len(made.encode(random_clip(0, "", "no", frames=3), epoch=0).question_ids) == 0


def test_questions_about_one_video_name_it(t: TinyClips) -> None:
    one, other, bare = (random_clip(i, "", "no", frames=3) for i in range(3))
    batch = t.of([replace(one, meta={"file_name": "a.mp4"}), replace(other, meta={"file_name": "a.mp4"}), bare])
    assert batch.sources == ("a.mp4", "a.mp4", "2")
