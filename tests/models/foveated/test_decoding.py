"""Looking frame by frame and writing answers, against recomputing everything at every step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coordvlm.contracts import ClipBatch
from coordvlm.models.foveated.decoding import Written, look_one_by_one, write_answers
from coordvlm.models.foveated.model import ARMS, Pass
from coordvlm.models.foveated.queries import MODES
from tests.clips import QUESTIONS, TinyClips, teach, tiny_clips

#: More clips than one, more frames than one, questions of several lengths.
PROMPTS = (*QUESTIONS, "Which?", QUESTIONS[2])


def one_pass(t: TinyClips, batch: ClipBatch, arm: str) -> Pass:
    cache = t.model.encode(batch.frames)
    coarse = t.model.coarse(batch, cache)
    return coarse if arm == "coarse" else t.model.fine(batch, cache, coarse)


def write(t: TinyClips, batch: ClipBatch, found: Pass, arm: str = "fine", num: int = 6) -> Written:
    values = t.grid.bin_values().double()
    return write_answers(t.model, batch, found.z, arm, max_new_tokens=num, values_K=values, window=16)


def prompts(t: TinyClips) -> ClipBatch:
    return t.batch(questions=PROMPTS, answers=["no"] * len(PROMPTS), with_answer=False)


@pytest.mark.parametrize("arm", ARMS)
def test_cached_decoding_is_recomputing(arm: str) -> None:
    t = tiny_clips(double=True)
    with torch.no_grad():
        for clip in range(len(PROMPTS)):
            batch = t.batch(questions=[PROMPTS[clip]], answers=["no"], seed=clip, with_answer=False)
            found = one_pass(t, batch, arm)
            written = write(t, batch, found, arm)
            embeds = t.model.embed(batch, found.z, arm)
            ids: list[int] = []
            for _ in range(6):
                at = torch.arange(embeds.shape[1])[None]
                logits = t.model.logits(t.model.run(embeds, at, torch.ones_like(at, dtype=torch.bool))[:, -1])
                ids += t.model.rows.token_ids(logits.argmax(-1)).tolist()
                if ids[-1] == t.model.vocab.end_id:
                    break
                embeds = torch.cat((embeds, t.model.rows.embed(torch.tensor([[ids[-1]]]), t.model.table)), 1)
            assert written.token_ids[0].tolist() == ids


@pytest.mark.parametrize("depth", ["deep", "shallow"])
@pytest.mark.parametrize("queries", MODES)
def test_looking_frame_by_frame_is_recomputing(depth: str, queries: str) -> None:
    """Every query is the state at the frame before, in a pass over the frames so far without a cache."""
    t = tiny_clips(double=True, depth=depth, queries=queries, first="init")
    batch = t.batch()
    with torch.no_grad():
        cache = t.model.encode(batch.frames)
        found = look_one_by_one(t.model, batch, cache, attention=True)
        z = torch.zeros(3, 3, 32).double()
        drawn = None if t.model.queries.from_states else t.model.queries.plan(t.model.states(batch, z, "fine"), batch)
        raw = [t.model.queries.init.expand(3, -1)]
        for frame in range(3):
            query = raw[-1] if drawn is None else drawn[:, frame]
            if queries == "diverse" and frame:
                along = raw[-2] / raw[-2].norm(dim=-1, keepdim=True)
                query = query - (query * along).sum(-1, keepdim=True) * along
                query = query * raw[-1].norm(dim=-1, keepdim=True) / query.norm(dim=-1, keepdim=True)
            elif queries == "swapped":
                query = query[[2, 0, 1]]
            seen = t.model.look(cache.frames(torch.arange(3) * 3 + frame), query)[1]
            z[:, frame] = seen
            torch.testing.assert_close(found.queries.view(3, 3, -1)[:, frame], query, atol=1e-5, rtol=0)
            raw.append(t.model.states(batch, z, "fine")[:, batch.mode_col + 1 + frame])
    torch.testing.assert_close(found.z, z, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.hidden, t.model.states(batch, z, "fine"), atol=1e-5, rtol=0)
    assert found.looked.attention is not None
    again = t.model.vision.attend(cache, found.queries, attention=True)
    torch.testing.assert_close(found.looked.attention, again.attention, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.looked.features, again.features, atol=1e-5, rtol=0)


@pytest.mark.parametrize("first", ["init", "question"])
def test_with_one_frame_looking_ahead_and_frame_by_frame_are_one(first: str) -> None:
    t = tiny_clips(double=True, num_frames=1, first=first)
    batch = t.batch()
    with torch.no_grad():
        auto, fine = look_one_by_one(t.model, batch, t.model.encode(batch.frames)), one_pass(t, batch, "fine")
    torch.testing.assert_close(auto.z, fine.z, atol=1e-9, rtol=0)
    torch.testing.assert_close(auto.hidden, fine.hidden, atol=1e-9, rtol=0)


def test_a_first_query_from_the_question_is_the_one_of_the_fine_pass() -> None:
    t = tiny_clips(double=True)
    batch = t.batch()
    with torch.no_grad():
        found = look_one_by_one(t.model, batch, t.model.encode(batch.frames))
        other = look_one_by_one(t.model, t.batch(questions=("What?", "", "Where?")), t.model.encode(batch.frames))
    planned = one_pass(t, batch, "fine").queries
    torch.testing.assert_close(found.queries.view(3, 3, -1)[:, 0], planned.view(3, 3, -1)[:, 0], atol=1e-9, rtol=0)
    moved = (found.queries - other.queries).view(3, 3, -1)[:, 0].abs().amax(-1)
    assert (moved > 1e-3).tolist() == [True, False, True]  # the second is asked nothing either time


def test_an_answer_in_the_batch_is_not_looked_at() -> None:
    t = tiny_clips(double=True)
    with_answer, without = t.batch(), t.batch(with_answer=False)
    with torch.no_grad():
        pairs = [(write(t, b, one_pass(t, b, "fine"))) for b in (with_answer, without)]
    for a, b in zip(pairs[0].token_ids, pairs[1].token_ids, strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_tokens_are_the_likeliest_exactly_where_greedy_decoding_gives_the_answer() -> None:
    t = tiny_clips(seed=3)
    teach(t, t.batch(questions=PROMPTS[:4], answers=["ab", "no", "ab", "ab"]))
    batch = t.batch(questions=PROMPTS[:4], answers=["ab", "no", "no", "circle"])
    with torch.no_grad():
        found = one_pass(t, batch, "fine")
        output = t.model.read(found, batch, {"text_nll", "text_correct"})
        written = write(t, batch, found)
    clip = torch.div(batch.text_row, batch.input_ids.shape[1], rounding_mode="floor")
    assert output.text_correct is not None
    right = [bool(output.text_correct[clip == b].all()) for b in range(4)]
    same = [batch.text_target[clip == b].tolist() == written.token_ids[b].tolist() for b in range(4)]
    assert right == same
    assert set(right) == {True, False}
    assert written.ended[:2].all()


def test_a_point_is_read_by_its_two_tokens_and_words_are_no_point() -> None:
    t = tiny_clips(double=True)
    batch = t.batch(questions=PROMPTS[:2], answers=[(10.0, 31.0), (40.0, 2.0)])
    teach(t, batch)
    with torch.no_grad():
        written = write(t, batch, one_pass(t, batch, "fine"))
    np.testing.assert_allclose(written.values[:, 0].ravel(), t.grid.bin_values()[batch.slot_bin].numpy(), atol=1e-6)
    assert [len(ids) for ids in written.token_ids] == [3, 3]
    for b, ids in enumerate(written.token_ids):
        assert ids[:2].tolist() == t.model.vocab.coord_ids[batch.slot_bin.view(2, 2)[b].numpy()].tolist()
    words = tiny_clips()
    plain = prompts(words)
    with torch.no_grad():
        spoken = write_answers(words.model, plain, one_pass(words, plain, "fine").z, "fine", max_new_tokens=2,
                               values_K=words.grid.bin_values(), window=16)  # fmt: skip
    is_bin = np.stack([np.isin(ids[:2], words.model.vocab.coord_ids) if len(ids) > 1 else np.zeros(2, bool) for ids in spoken.token_ids])
    np.testing.assert_array_equal(np.isfinite(spoken.values).all(1), is_bin)


def test_answers_end_at_the_end_or_at_the_limit() -> None:
    t = tiny_clips()
    batch = prompts(t)
    with torch.no_grad():
        found = one_pass(t, batch, "fine")
        options = {"values_K": t.grid.bin_values(), "window": 16}
        one, six = (write_answers(t.model, batch, found.z, "fine", max_new_tokens=n, **options) for n in (1, 6))
    assert all(len(ids) == 1 for ids in one.token_ids)
    end = t.model.vocab.end_id
    for ids, ended in zip(six.token_ids, six.ended, strict=True):
        assert (ids[-1] == end) == bool(ended)
        assert end not in ids[:-1]
        assert ended or len(ids) == 6
