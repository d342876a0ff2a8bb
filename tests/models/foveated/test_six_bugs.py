"""Six faults of the first published implementation, one test each: none may come back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from coordvlm.contracts import Clip, ClipBatch
from coordvlm.models.foveated.decoding import write_answers
from coordvlm.models.foveated.model import Pass, normalised_entropy
from coordvlm.models.foveated.queries import QueryPlan
from coordvlm.models.foveated.vision import FoveatedVision
from coordvlm.modules.foveated import TaskMix
from tests.clips import QUESTIONS, TinyClips, clips, teach, tiny_clips

MIX = {"caption": {"share": 0.5, "terms": ["text_ce"]}, "reconstruct": {"share": 0.5, "terms": ["latent_mse"]}}


def first_logits(vision: FoveatedVision, batch: ClipBatch, queries: Tensor) -> Tensor:
    """log of attention [F, h, N] in the first layer: its logits up to a constant per head."""
    found = vision.attend(vision.encode(batch.frames.flatten(0, 1)), queries, attention=True)
    assert found.attention is not None
    return found.attention[0].clamp_min(1e-30).log()


def spread(t: TinyClips, queries: Tensor) -> float:
    """Mean normalised entropy of a shallow attention."""
    batch = t.batch()
    found = t.model.vision.attend(t.model.encode(batch.frames), queries.expand(9, -1), attention=True)
    assert found.attention is not None
    return float(normalised_entropy(found.attention).mean())


@torch.no_grad()
def test_bug_1_learned_queries_start_at_the_size_of_states_and_not_at_0_02() -> None:
    """At 0.02 attention is the same everywhere, and stays so; from N(0, 1) it is not."""
    queries = [p for seed in range(20) for p in (plan_of(seed).static, plan_of(seed).init)]
    together = torch.cat(queries)
    assert abs(float(together.mean())) < 0.1
    assert abs(float(together.std()) - 1) < 0.05
    t = tiny_clips(depth="shallow", temperature=1.0, double=True)
    static = t.model.queries.static
    hidden = t.model.coarse(b := t.batch(), t.model.encode(b.frames)).hidden[:, b.mode_col + 1 : b.answer_col]
    assert 0.5 < float(static.norm() / hidden.norm(dim=-1).mean()) < 2  # the planned queries are as large
    small, own = spread(t, static * 0.02), spread(t, static)
    assert small > 0.9999  # uniform
    assert 1 - own > 100 * (1 - small)


def plan_of(seed: int) -> QueryPlan:
    return QueryPlan(32, mode="llm", first="init", trained=("coarse", "fine"), num_frames=3, seed=seed)


@torch.no_grad()
def test_bug_2_the_query_projection_has_no_bias() -> None:
    """A bias looks the same way for every query: opposite queries must look opposite ways, and none at all nowhere in particular."""
    t = tiny_clips(depth="shallow", temperature=1.0, double=True)
    vision, batch = t.model.vision, t.batch()
    assert vision.merger["query"].bias is None
    queries = torch.randn(9, 32, generator=torch.Generator().manual_seed(1)).double()
    one, other, none = (first_logits(vision, batch, q) for q in (queries, -queries, 0 * queries))
    flat = torch.full_like(none, -np.log(9))
    torch.testing.assert_close(none, flat, atol=1e-6, rtol=0)
    centred = [x - x.mean(-1, keepdim=True) for x in (one, other)]
    torch.testing.assert_close(centred[0], -centred[1], atol=1e-4, rtol=0)
    assert centred[0].abs().max() > 0.1
    deep = tiny_clips(temperature=1.0, double=True)
    maps = [first_logits(deep.model.vision, batch, q).exp() for q in (queries, -queries)]
    apart, uneven = (maps[0] - maps[1]).abs(), (maps[0] - 1 / 9).abs()
    assert float(apart.sum() / uneven.sum()) > 1.5  # 2 where they are opposite, 0 where a bias decides


def test_bug_3_the_task_is_chosen_for_a_whole_step_and_not_for_every_sample() -> None:
    """Every draw of a step is the same (so: every sample, micro-batch and rank), and steps differ in the shares asked for."""
    mixes = [TaskMix(MIX, {"text_ce": 1.0, "latent_mse": 0.5}, seed=5) for _ in range(2)]
    drawn = [mixes[0].draw(step) for step in range(400)]
    torch.manual_seed(123)  # other random numbers in between change nothing
    assert drawn == [mixes[1].draw(step) for step in range(400)]
    assert drawn == [mixes[0].draw(step) for step in range(400)]
    assert {frozenset({"text_ce"}), frozenset({"latent_mse"})} == set(drawn)
    assert 160 < sum(d == frozenset({"text_ce"}) for d in drawn) < 240
    assert drawn != [TaskMix(MIX, {"text_ce": 1.0, "latent_mse": 0.5}, seed=6).draw(step) for step in range(400)]


@torch.no_grad()
def test_bug_4_shallow_attention_depends_on_the_query_and_is_not_uniform() -> None:
    t = tiny_clips(depth="shallow", double=True)  # the shipped temperature
    batch = t.batch()
    cache = t.model.encode(batch.frames)
    queries = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1)).double()
    maps = [t.model.vision.attend(cache, q, attention=True).attention for q in queries]
    assert maps[0] is not None
    assert maps[1] is not None
    assert float(normalised_entropy(maps[0]).mean()) < 0.9
    assert float((maps[0] - maps[1]).abs().sum(-1).mean()) > 0.3  # of 2 at most


def fine(t: TinyClips, batch: ClipBatch) -> Pass:
    cache = t.model.encode(batch.frames)
    return t.model.fine(batch, cache, t.model.coarse(batch, cache))


def test_bug_5_answers_of_several_clips_of_several_frames_are_those_of_each_clip_alone() -> None:
    """In captioning the cache of keys once had the frames of all clips in one row."""
    t = tiny_clips(double=True)
    values = t.grid.bin_values().double()
    questions = (*QUESTIONS, "Which?")
    answers = ("no", "a bar", "circle", "ball")
    teach(t, t.of([one_clip(q, seed, a)[0] for seed, (q, a) in enumerate(zip(questions, answers, strict=True))]))

    @torch.no_grad()
    def written(batch: ClipBatch) -> list[list[int]]:
        found = write_answers(t.model, batch, fine(t, batch).z, "fine", max_new_tokens=6, values_K=values, window=16)
        return [ids.tolist() for ids in found.token_ids]

    given = [c for q, seed in zip(questions, range(4), strict=True) for c in one_clip(q, seed)]
    together, alone = written(t.of(given, with_answer=False)), [written(t.of([c], with_answer=False))[0] for c in given]
    assert together == alone
    assert len({tuple(x) for x in together}) == 4
    assert max(map(len, together)) > 1


def one_clip(question: str, seed: int, answer: str = "no") -> list[Clip]:
    return clips([question], [answer], frames=3, seed=seed)


@torch.no_grad()
def test_bug_6_every_frame_of_every_clip_is_read_from_its_own_patches_with_its_own_query() -> None:
    """In encoding the cache of patches once was [T, B] where queries were [B, T]."""
    t = tiny_clips(double=True)
    given = [c for seed in range(4) for c in one_clip(QUESTIONS[seed % 3], seed)]
    batch, order = t.of(given), [2, 0, 3, 1]
    found, moved = fine(t, batch), fine(t, t.of([given[i] for i in order]))
    torch.testing.assert_close(moved.z, found.z[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.hidden[:, batch.mode_col :], found.hidden[order][:, batch.mode_col :], atol=1e-6, rtol=0)
    queries = found.queries.view(4, 3, -1)
    for b in range(4):
        for frame in range(3):
            cache = t.model.vision.encode(batch.frames[b, frame][None])
            torch.testing.assert_close(t.model.look(cache, queries[b, frame][None])[1][0], found.z[b, frame], atol=1e-6, rtol=0)
    assert (found.z[0, 0] - found.z[0, 1]).abs().max() > 1e-3
    assert (found.z[0, 0] - found.z[1, 0]).abs().max() > 1e-3
