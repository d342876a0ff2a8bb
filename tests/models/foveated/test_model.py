"""The two passes: padding, losses against the library's own, gradients, and what is computed once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from coordvlm.contracts import ClipBatch
from coordvlm.models.foveated.model import ARMS, Pass, normalised_entropy
from coordvlm.models.foveated.queries import MODES
from coordvlm.modules.looker import without_text
from coordvlm.utils.errors import ConfigError
from tests.clips import ANSWERS, NEEDS, QUESTIONS, TinyClips, clips, tiny_clips

EVERYTHING = frozenset({
    "text_nll", "text_lse", "text_coord_lse", "text_correct", "slot_logits", "slot_lse", "slot_correct", "frame_entropy", "frame_features",
})  # fmt: skip


@pytest.fixture(scope="module")
def t() -> TinyClips:
    return tiny_clips(double=True)


def passes(t: TinyClips, batch: ClipBatch) -> dict[str, Pass]:
    cache = t.model.encode(batch.frames)
    coarse = t.model.coarse(batch, cache)
    return {"coarse": coarse, "fine": t.model.fine(batch, cache, coarse)}


def per_clip(batch: ClipBatch, rows: Tensor, values: Tensor) -> list[Tensor]:
    clip = torch.div(rows, batch.input_ids.shape[1], rounding_mode="floor")
    return [values[clip == b] for b in range(len(batch))]


# ---------------------------------------------------------------------- padding
@pytest.mark.parametrize("first", ["init", "question"])
@pytest.mark.parametrize("queries", ["llm", "diverse", "orthogonal"])
def test_a_padded_batch_gives_the_losses_of_single_clips(first: str, queries: str) -> None:
    t = tiny_clips(double=True, first=first, queries=queries, iterations=2)
    given = clips(QUESTIONS, [ANSWERS[0], (10.0, 31.0), ANSWERS[1]], frames=3)
    together = t.of(given)
    out = t.model(together, EVERYTHING)
    for b, clip in enumerate(given):
        alone = t.of([clip])
        for arm, outputs in t.model(alone, EVERYTHING).items():
            assert len(out[arm]) == len(outputs) == (2 if arm == "fine" else 1)
            for mine, theirs in zip(outputs, out[arm], strict=True):
                for name, rows in (("text_nll", together.text_row), ("text_lse", together.text_row), ("slot_lse", together.slot_row)):
                    found = per_clip(together, rows, getattr(theirs, name))[b]
                    torch.testing.assert_close(getattr(mine, name), found, atol=1e-5, rtol=0)
                torch.testing.assert_close(mine.frame_features, theirs.frame_features[3 * b : 3 * b + 3], atol=1e-5, rtol=0)
                torch.testing.assert_close(mine.frame_entropy, theirs.frame_entropy[3 * b : 3 * b + 3], atol=1e-5, rtol=0)


def test_what_stands_on_padding_does_not_matter(t: TinyClips) -> None:
    batch = t.batch()
    ids = torch.where(batch.attention_mask, batch.input_ids, torch.full_like(batch.input_ids, 7))
    other = replace(batch, input_ids=ids)
    for arm in ARMS:
        torch.testing.assert_close(t.model(batch, NEEDS)[arm][0].text_nll, t.model(other, NEEDS)[arm][0].text_nll, atol=1e-9, rtol=0)


@pytest.mark.parametrize("text", [True, False])
def test_rows_that_are_all_padding_make_no_nan_forward_or_backward(text: bool) -> None:
    """In float32, where the fast attention of the library runs; the second clip has no question, so its columns before the mode are
    masked altogether, and without text everyone's are."""
    t = tiny_clips()
    batch = t.batch() if text else without_text(t.batch())
    assert not batch.attention_mask[1, : batch.mode_col].any()
    hidden = passes(t, batch)
    out = t.model(batch, EVERYTHING)
    assert all(p.hidden.isfinite().all() for p in hidden.values())
    sum(o[-1].text_nll.sum() + o[-1].frame_entropy.sum() for o in out.values()).backward()  # type: ignore[union-attr]
    assert [n for n, p in t.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()] == []


# ---------------------------------------------------------------------- losses
@pytest.mark.parametrize("arm", ARMS)
def test_the_loss_is_that_of_the_library_on_the_assembled_embeddings(t: TinyClips, arm: str) -> None:
    """Words only: new rows (mode tokens, coordinates) put apart from the library's table do not stand in the labels' way, they are classes
    too. So the library's logits are widened by them."""
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        batch = t.batch(questions=[question], answers=[answer])
        found = passes(t, batch)[arm]
        language = t.model.language
        words = language.get_input_embeddings().weight
        ids = batch.input_ids[0]
        marker = t.model.rows.embed(torch.tensor([[t.model.vocab.marker_ids[f"<{arm}>"]]]), t.model.table)[0]
        embeds = torch.cat((words[ids[: batch.mode_col]], marker, found.z[0], words[ids[batch.answer_col :]]))[None]
        hidden = language.model(inputs_embeds=embeds).last_hidden_state[0]
        fresh = t.model.rows.embed(torch.tensor([t.model.rows.new_ids.tolist()]), t.model.table)[0]
        logits = torch.cat((hidden @ words.T, hidden @ fresh.T), 1)
        used = torch.ones(logits.shape[1], dtype=torch.bool)
        used[len(t.tokenizer.get_vocab()) - len(fresh) : len(words)] = False  # rows beyond the tokenizer, or stood in for by new ones
        logits = logits.masked_fill(~used, float("-inf"))
        start = batch.answer_col
        expected = torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:], reduction="none")
        mine = t.model.read(found, batch, {"text_nll"}).text_nll
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)


def test_the_mode_token_tells_the_passes_apart(t: TinyClips) -> None:
    batch = t.batch()
    found = passes(t, batch)
    z = found["coarse"].z
    a, b = t.model.states(batch, z, "coarse"), t.model.states(batch, z, "fine")
    assert (a - b)[:, batch.mode_col :].abs().max() > 1e-3
    torch.testing.assert_close(a[:, : batch.mode_col], b[:, : batch.mode_col], atol=0, rtol=0)


def test_every_frame_is_a_token_of_the_set_size(t: TinyClips) -> None:
    for found in passes(t, t.batch()).values():
        torch.testing.assert_close(found.z.square().mean(-1).sqrt(), torch.full((3, 3), 0.14).double(), atol=1e-5, rtol=0)


def test_iterations_take_their_queries_from_the_pass_before() -> None:
    t = tiny_clips(double=True, iterations=3)
    batch = t.batch()
    cache = t.model.encode(batch.frames)
    last = t.model.coarse(batch, cache)
    expected = []
    for _ in range(3):
        last = t.model.fine(batch, cache, last)
        expected.append(t.model.read(last, batch, NEEDS).text_nll)
    found = t.model(batch, NEEDS)["fine"]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.text_nll, theirs, atol=1e-9, rtol=0)
    assert (found[0].text_nll - found[2].text_nll).abs().max() > 1e-6


def test_a_coarse_pass_that_only_plans_stops_before_the_answer(t: TinyClips) -> None:
    batch = t.batch()
    cache = t.model.encode(batch.frames)
    short, whole = t.model.coarse(batch, cache, answer=False), t.model.coarse(batch, cache)
    assert short.hidden.shape[1] == batch.answer_col
    torch.testing.assert_close(short.hidden, whole.hidden[:, : batch.answer_col], atol=1e-9, rtol=0)
    only = t.model(batch, NEEDS, ("fine",))
    assert list(only) == ["fine"]
    torch.testing.assert_close(only["fine"][0].text_nll, t.model(batch, NEEDS)["fine"][0].text_nll, atol=1e-9, rtol=0)


def test_a_single_frame_is_a_clip(t: TinyClips) -> None:
    one = tiny_clips(double=True, num_frames=1)
    out = one.model(one.batch(), NEEDS)
    assert out["fine"][0].text_nll.isfinite().all()


def test_a_later_frame_does_not_change_an_earlier_query(t: TinyClips) -> None:
    batch = t.batch()
    frames = batch.frames.clone()
    frames[:, 2] = 255 - frames[:, 2]
    other = passes(t, replace(batch, frames=frames))["fine"].queries
    torch.testing.assert_close(other, passes(t, batch)["fine"].queries, atol=1e-9, rtol=0)


# ---------------------------------------------------------------------- what is computed once
@pytest.mark.parametrize("iterations", [1, 3])
def test_patches_are_encoded_once_for_all_passes(iterations: int) -> None:
    t = tiny_clips(iterations=iterations)
    ran: list[int] = []
    t.model.vision.tower.embeddings.register_forward_hook(lambda *x: ran.append(len(x[2])))
    t.model(t.batch(), EVERYTHING)
    assert t.model.vision.calls == 1
    assert ran == [9]


# ---------------------------------------------------------------------- gradients
@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_gradients_reach_queries_and_both_passes(depth: str) -> None:
    t = tiny_clips(depth=depth, first="init", double=True)
    batch = t.batch()
    q = t.model.queries
    cases = (("coarse", q.static, True), ("fine", q.static, True), ("fine", q.init, True), ("coarse", q.init, False))
    for arm, parameter, reached in cases:
        t.model.zero_grad()
        t.model(batch, NEEDS)[arm][0].text_nll.sum().backward()
        size = 0.0 if parameter.grad is None else float(parameter.grad.abs().sum())
        assert (size > 0) == reached, (arm, reached)
    t.model.zero_grad()
    t.model(batch, NEEDS, ("fine",))["fine"][0].text_nll.sum().backward()
    assert float(t.model.vision.merger["query"].weight.grad.abs().sum()) > 0


def test_the_fine_loss_reaches_the_states_that_planned_it(t: TinyClips) -> None:
    """By finite differences along a direction: the static query acts on the fine loss through the plan alone."""
    t = tiny_clips(double=True, first="init")
    batch, static = t.batch(), t.model.queries.static

    def loss() -> Tensor:
        return t.model(batch, NEEDS, ("fine",))["fine"][0].text_nll.sum()

    (slope,) = torch.autograd.grad(loss(), static)
    way, step = torch.nn.functional.normalize(slope, dim=0), 1e-4
    with torch.no_grad():
        static += step * way
        up = loss()
        static -= 2 * step * way
        down = loss()
    assert float(slope.norm()) > 1e-6
    assert float((up - down) / (2 * step)) == pytest.approx(float(slope.norm()), rel=1e-2)


@pytest.mark.parametrize("arms", [("coarse",), ("fine",), ("coarse", "fine")], ids="+".join)
@pytest.mark.parametrize(("queries", "settings"), [
    *((mode, {"first": "init"}) for mode in MODES),
    *(("llm", settings) for settings in (
        {"first": "question"}, {"first": "init", "num_frames": 1}, {"first": "question", "num_frames": 1}, {"depth": "shallow"},
        {"freeze": ["vision"]}, {"freeze": ["language"]}, {"iterations": 2},
    )),
])  # fmt: skip
def test_whatever_trains_has_a_gradient(arms: tuple[str, ...], queries: str, settings: dict[str, Any]) -> None:
    """Several processes wait for the gradient of every parameter that trains."""
    t = tiny_clips(queries=queries, arms=arms, **settings)
    out = t.model(t.batch(), NEEDS, arms)
    sum(o.text_nll.sum() for outputs in out.values() for o in outputs).backward()  # type: ignore[union-attr]
    assert [n for n, p in t.model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("part", ["vision", "language"])
def test_a_frozen_part_has_no_gradient_and_all_else_has(part: str) -> None:
    t = tiny_clips(freeze=[part])
    sum(o[0].text_nll.sum() for o in t.model(t.batch(), NEEDS).values()).backward()  # type: ignore[union-attr]
    own = "hf.visual.tower." if part == "vision" else "hf.language."
    named = dict(t.model.named_parameters())
    assert all(p.grad is None for n, p in named.items() if n.startswith(own))
    assert all(float(p.grad.abs().sum()) > 0 for n, p in named.items() if p.requires_grad and p.grad is not None and p.ndim > 1)


# ---------------------------------------------------------------------- the rest
@pytest.mark.parametrize("num", [2, 25])
def test_normalised_entropy_is_1_for_uniform_and_0_for_one_patch(num: int) -> None:
    even, one = torch.full((2, num), 1 / num), torch.eye(num)[:2]
    torch.testing.assert_close(normalised_entropy(even), torch.ones(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(normalised_entropy(one), torch.zeros(2), atol=1e-6, rtol=0)
    half = torch.zeros(1, 16)
    half[0, :4] = 0.25
    torch.testing.assert_close(normalised_entropy(half), torch.tensor([0.5]), atol=1e-6, rtol=0)


def test_a_field_the_model_does_not_give_is_refused(t: TinyClips) -> None:
    with pytest.raises(ValueError, match="the foveated model cannot give box_head_end"):
        t.model(t.batch(), {"box_head_end"})


@pytest.mark.parametrize(("settings", "message"), [
    ({"iterations": 0}, "module.iterations must be an integer of at least 1, got 0"),
    ({"iterations": True}, "module.iterations must be an integer of at least 1, got True"),
    ({"freeze": ["tower"]}, "model.freeze knows vision, language, got tower"),
])  # fmt: skip
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_clips(**settings)


@pytest.mark.parametrize("lowest", [float("-inf"), -500.0])  # as top_k leaves it; as a sharp query does, beyond what float32 holds
def test_the_entropys_slope_is_a_number_where_a_patch_gets_nothing(lowest: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, lowest], dtype=torch.float64, requires_grad=True)
    normalised_entropy(logits.softmax(-1)).backward()
    others = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
    (torch.distributions.Categorical(logits=others).entropy() / math.log(4)).backward()
    torch.testing.assert_close(logits.grad, torch.cat((others.grad, torch.zeros(1, dtype=torch.float64))), atol=1e-9, rtol=0)  # type: ignore[arg-type]
    narrow = torch.tensor([2.0, 1.0, 0.5, lowest], requires_grad=True)
    (normalised_entropy(narrow.softmax(-1)) - 2).clamp_min(0.0).backward()  # below the threshold of the hinge
    assert narrow.grad is not None
    assert narrow.grad.eq(0).all()
