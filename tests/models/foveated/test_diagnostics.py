"""What queries do, on models whose queries are known; the answer asked for early against a batch of shorter clips."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from coordvlm.contracts import ClipBatch
from coordvlm.models.foveated.diagnostics import at_right_angles, feature_cosine, frame_sums, query_facts, up_to_frame
from coordvlm.models.foveated.model import Pass
from coordvlm.modules.looker import _sums
from tests.clips import PATCH, SIZE, clips, tiny_clips

ANSWERS = ("circle", (10.0, 31.5), "a bar")


def given(frames: int = 3) -> tuple[object, ClipBatch]:
    tiny = tiny_clips(num_frames=frames, double=True)
    return tiny, tiny.batch(answers=ANSWERS)


def passes(tiny: object, batch: ClipBatch) -> tuple[object, Pass, Pass]:
    model = tiny.model  # type: ignore[attr-defined]
    cache = model.encode(batch.frames)
    coarse = model.coarse(batch, cache, attention=True)
    return cache, coarse, model.fine(batch, cache, coarse, attention=True)


@pytest.mark.parametrize("last", [0, 1, 2])
@torch.no_grad()
def test_asking_early_is_asking_about_a_shorter_clip(last: int) -> None:
    """Against the encoder's own batch of the same clips cut to so many frames: positions, rows and losses."""
    tiny = tiny_clips(num_frames=3, double=True)
    whole = clips(("Which symbol is in cell B3?", "", "How many?"), ANSWERS, frames=3)
    batch = tiny.of(whole)
    short = tiny_clips(num_frames=last + 1, double=True).of([replace(c, frames=c.frames[: last + 1]) for c in whole])
    cut = up_to_frame(batch, last)
    for name in ("input_ids", "attention_mask", "position_ids", "text_row", "slot_row", "ask_row", "image_pos", "lengths", "prompt_lengths",
                 "frames"):  # fmt: skip
        assert torch.equal(getattr(cut, name), getattr(short, name)), name
    z = tiny.model.coarse(batch, tiny.model.encode(batch.frames)).z
    found = frame_sums(tiny.model, batch, z, "coarse", points=False)
    alone = tiny.model.coarse(short, tiny.model.encode(short.frames))
    nll, tokens, _ = _sums(tiny.model.read(alone, short, {"text_nll", "text_correct", "slot_logits", "slot_lse", "slot_correct"}), short)
    assert found.nll[last] == pytest.approx(float(nll.sum()), rel=1e-5)
    assert found.tokens == int(tokens.sum())


def test_a_frame_that_is_not_there_is_refused() -> None:
    _, batch = given()
    with pytest.raises(ValueError, match="have 3 frames, got frame 3"):
        up_to_frame(batch, 3)


def test_points_of_heads_are_measured_on_a_side_of_384() -> None:
    tiny = tiny_clips(num_frames=2, needs={"point_xy"})
    batch = tiny.batch(answers=((0.0, 0.0), (42.0, 42.0), (21.0, 21.0)))
    for head in tiny.model.heads.values():
        for parameter in head.parameters():
            torch.nn.init.zeros_(parameter)  # every answer is the middle
    z = tiny.model.coarse(batch, tiny.model.encode(batch.frames)).z
    found = frame_sums(tiny.model, batch, z, "coarse", points=True)
    assert found.points == 3
    assert found.error == pytest.approx([2 * 192 * 2**0.5] * 2)


@torch.no_grad()
def test_the_coarse_queries_are_one_and_the_same() -> None:
    tiny, batch = given()
    cache, coarse, fine = passes(tiny, batch)
    facts = query_facts(tiny.model, batch, cache, coarse)  # type: ignore[attr-defined, arg-type]
    assert facts.std == pytest.approx(0.0, abs=1e-6)
    assert (facts.cos_frames, facts.cos_clips, facts.cos_static) == pytest.approx((1.0, 1.0, 1.0))
    planned = query_facts(tiny.model, batch, cache, fine)  # type: ignore[attr-defined, arg-type]
    assert planned.std > 0.1
    assert planned.cos_static < 0.9


@torch.no_grad()
def test_queries_at_right_angles_have_cosine_zero() -> None:
    """Three frames' queries are the axes, the same in each clip: 0 between frames, 1 between clips."""
    tiny, batch = given()
    cache, coarse, _ = passes(tiny, batch)
    axes = torch.eye(coarse.queries.shape[1], dtype=torch.float64)[:3].repeat(len(batch), 1)
    facts = query_facts(tiny.model, batch, cache, replace(coarse, queries=axes))  # type: ignore[attr-defined, arg-type]
    assert facts.cos_frames == pytest.approx(0.0, abs=1e-6)
    assert facts.cos_clips == pytest.approx(1.0)
    assert facts.rms == pytest.approx((1 / axes.shape[1]) ** 0.5)


@torch.no_grad()
def test_a_query_that_is_read_moves_features_and_one_that_is_not_does_not() -> None:
    tiny, batch = given()
    cache, coarse, _ = passes(tiny, batch)
    read = query_facts(tiny.model, batch, cache, coarse)  # type: ignore[attr-defined, arg-type]
    assert read.opposite > 0.05
    assert read.orthogonal > 0.05
    tiny.model.vision.merger["query"].weight.zero_()  # type: ignore[attr-defined]
    cache, coarse, _ = passes(tiny, batch)
    blind = query_facts(tiny.model, batch, cache, coarse)  # type: ignore[attr-defined, arg-type]
    assert (blind.opposite, blind.orthogonal) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_a_single_clip_and_a_single_frame_have_no_cosines() -> None:
    tiny = tiny_clips(num_frames=1)
    batch = tiny.batch(questions=("Where?",), answers=("no",))
    cache, coarse, _ = passes(tiny, batch)
    facts = query_facts(tiny.model, batch, cache, coarse)  # type: ignore[arg-type]
    assert np.isnan([facts.cos_frames, facts.cos_clips]).all()


def test_random_queries_at_right_angles_are_as_long_and_the_same_each_time() -> None:
    queries = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    drawn = at_right_angles(queries, [3, 4])
    assert (queries * drawn).sum(-1).abs().max() < 1e-4
    assert torch.allclose(queries.norm(dim=-1), drawn.norm(dim=-1), rtol=1e-5)
    assert torch.equal(drawn, at_right_angles(queries, [3, 4]))
    assert not torch.equal(drawn, at_right_angles(queries, [3, 5]))


@torch.no_grad()
def test_the_cosine_of_features_is_one_of_a_pass_with_itself() -> None:
    tiny, batch = given()
    _, coarse, fine = passes(tiny, batch)
    assert feature_cosine(coarse, coarse) == pytest.approx(1.0)
    assert feature_cosine(coarse, fine) < 0.9999
    assert fine.looked.attention is not None
    assert fine.looked.attention.shape[1:] == (9, 4, (SIZE // PATCH) ** 2)
