"""Draws against exact probabilities, and that a sample's answer is its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from coordvlm.models.sampling import Sampling
from coordvlm.utils.errors import ConfigError
from tests.models.test_decode import SIDES, _encoded, decoder, noisy

SAMPLING = Sampling(temperature=1.0, top_p=0.95, seed=0)


def draws(sampling: Sampling, logits: list[float], num: int = 20_000) -> np.ndarray:
    """How often each column comes."""
    z = torch.tensor(logits).expand(num, -1)
    u = sampling.uniforms([0], attempt=1, steps=num)[0]
    return np.bincount(sampling.choose(z, u).numpy(), minlength=len(logits))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_columns_come_with_their_probability(temperature: float) -> None:
    logits = np.array([0.3, -1.0, 2.0, 0.0, 1.2])
    weight = np.exp(logits / temperature)
    got = draws(Sampling(temperature, 1.0, seed=3), logits.tolist())
    assert stats.chisquare(got, weight / weight.sum() * got.sum()).pvalue > 1e-3


def test_only_the_nucleus_is_drawn_from() -> None:
    """Probabilities 0.4, 0.3, 0.2, 0.1: the most probable ones that reach 0.6 are the first two, those that reach 0.75 are three."""
    p = np.array([0.1, 0.4, 0.2, 0.3])
    for top_p, kept in ((0.3, [1]), (0.6, [1, 3]), (0.75, [1, 3, 2]), (1.0, [0, 1, 2, 3])):
        got = draws(Sampling(1.0, top_p, seed=1), np.log(p).tolist())
        assert set(np.flatnonzero(got)) == set(kept)
        assert stats.chisquare(got[kept], p[kept] / p[kept].sum() * got.sum()).pvalue > 1e-3 if len(kept) > 1 else True


def test_a_masked_column_is_never_drawn_and_a_tiny_temperature_is_greedy() -> None:
    got = draws(Sampling(5.0, 1.0, seed=0), [0.0, float("-inf"), 1.0, float("-inf")])
    assert got[[1, 3]].sum() == 0
    z = torch.tensor([[0.0, 3.0, 2.9], [40.0, -40.0, 39.0]])
    for u in (0.0, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))):
        assert Sampling(1e-30, 1.0, seed=0).choose(z, torch.full((2,), u)).tolist() == [1, 0]


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-24])
def test_both_ends_of_the_unit_interval_are_columns(u: float) -> None:
    z = torch.randn(64, 5000, generator=torch.Generator().manual_seed(0))
    column = Sampling(1.0, 0.9, seed=0).choose(z, torch.full((64,), u))
    assert (column >= 0).all()
    if u == 0:
        assert (column == z.argmax(-1)).all()


def test_streams_differ_by_seed_sample_and_attempt_only() -> None:
    a = Sampling(1.0, 1.0, seed=0)
    base = a.uniforms([5], attempt=1, steps=8)[0]
    for other in (
        Sampling(1.0, 1.0, seed=1).uniforms([5], attempt=1, steps=8)[0], a.uniforms([6], attempt=1, steps=8)[0],
        a.uniforms([5], attempt=2, steps=8)[0], a.uniforms(["5"], attempt=1, steps=8)[0],
    ):  # fmt: skip
        assert not torch.equal(base, other)
    assert torch.equal(base, a.uniforms([9, 5], attempt=1, steps=8)[1])
    assert torch.equal(base[:4], a.uniforms([5], attempt=1, steps=4)[0])


def test_an_answer_does_not_depend_on_its_batch() -> None:
    t = noisy(1)
    with torch.no_grad():  # ends early: rows leave at different steps
        t.backbone.table.weight[t.vocab.end_id] *= 2
    batch = t.batch(seed=1, counts=(2, 0, 1, 1, 3), sides=SIDES)
    together = decoder(t, grammar=False).decode(batch, sampling=SAMPLING, attempt=1)
    alone = [decoder(t, grammar=False).decode(t.encoder.collate([e]), sampling=SAMPLING, attempt=1)[0] for e in _encoded(t, 1)]
    again = decoder(t, grammar=False).decode(batch, sampling=SAMPLING, attempt=2)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.logprob, b.logprob, atol=1e-4)
    assert any(a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(together, again, strict=True))


def test_scores_of_a_drawn_token_are_those_of_the_raw_distribution() -> None:
    """A high temperature changes which tokens come, never what is said of their probability."""
    t = noisy(2)
    batch = t.batch(seed=2)
    hot = decoder(t, grammar=False, budget=1).decode(batch, sampling=Sampling(8.0, 1.0, seed=0), attempt=1)
    greedy = decoder(t, grammar=False, budget=1).decode(batch)
    assert any(h.token_ids[0] != g.token_ids[0] for h, g in zip(hot, greedy, strict=True))
    for h, g in zip(hot, greedy, strict=True):
        assert h.expectation[0] == g.expectation[0]
        assert h.logprob[0] <= g.logprob[0]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"temperature": 0}, "decode.temperature must be above 0"), ({"temperature": "hot"}, "decode.temperature must be above 0"),
        ({"temperature": float("nan")}, "decode.temperature"), ({"top_p": 0.0}, r"decode.top_p must lie in \(0, 1\]"),
        ({"top_p": 1.5}, "decode.top_p"), ({"seed": -1}, "decode.seed must be an integer"), ({"seed": True}, "decode.seed"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(change: dict[str, object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        Sampling(**{"temperature": 1.0, "top_p": 0.9, "seed": 0, **change})  # type: ignore[arg-type]
