"""The decode loop against the library's ``generate``, and the grammar's promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coordvlm.models.decode import GreedyDecoder
from coordvlm.sequence.grammar import ObjectsGrammar
from coordvlm.sequence.parse import ObjectsParser
from tests.tiny import MARKERS, Tiny, hf_inputs, tiny

SIDES = ((48, 32), (32, 32), (32, 64), (16, 16), (64, 64))


def decoder(t: Tiny, *, grammar: bool, budget: int = 24) -> GreedyDecoder:
    rows, v = t.backbone.rows, t.vocab
    g = None
    if grammar:
        col = {
            name: int(rows.columns(torch.tensor(i)))
            for name, i in [("s", v.marker_ids[MARKERS[0]]), ("e", v.marker_ids[MARKERS[1]]), ("eot", v.end_id)]
        }
        g = ObjectsGrammar(
            num_columns=t.backbone.num_columns,
            coord_columns=range(rows.num_base, rows.num_base + 1000),
            start=col["s"],
            end=col["e"],
            end_of_turn=col["eot"],
            forbidden=[v.image_id, v.pad_id, *rows.shadow.nonzero().flatten().tolist()],
            blank=[i for i in range(len(t.tokenizer)) if not t.tokenizer.decode([i]).strip()],
        )
    return GreedyDecoder(t.backbone, t.grid.bin_values(), max_new_tokens=budget, grammar=g, mass_radius=10, local_window=16)


def noisy(seed: int, **kwargs: object) -> Tiny:
    """Larger random weights, so that greedy answers differ between images and some end early."""
    t = tiny(seed=seed, **kwargs)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in t.backbone.parameters():
            if p.ndim >= 2:
                p.add_(torch.randn(p.shape, generator=gen) * 0.15)
    return t


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tied", [True, False])
def test_tokens_equal_generate(seed: int, tied: bool) -> None:
    t = noisy(seed, tied=tied)
    batch = t.batch(seed=seed, counts=(2, 0, 1, 1, 3), sides=SIDES)
    mine = decoder(t, grammar=False).decode(batch)
    hf = t.backbone.to_hf()
    for b, got in enumerate(mine):
        one = t.batch(seed=seed, counts=(2, 0, 1, 1, 3), sides=SIDES)
        inputs = hf_inputs(one, image_id=t.vocab.image_id, patch_norm=t.backbone.pixel_norm, prompt_only=True)
        patches = one.image_grid_thw.prod(-1).tolist()
        low = sum(patches[:b])
        length = int(one.prompt_lengths[b])
        row = {k: inputs[k][b : b + 1, :length] for k in ("input_ids", "attention_mask", "mm_token_type_ids")}
        out = hf.generate(
            **row,
            pixel_values=inputs["pixel_values"][low : low + patches[b]],
            image_grid_thw=one.image_grid_thw[b : b + 1],
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=t.vocab.end_id,
            pad_token_id=t.vocab.pad_id,
        )[0, length:].numpy()
        np.testing.assert_array_equal(got.token_ids, out)


def test_rows_leave_when_done_and_the_others_go_on() -> None:
    """Half of the rows are made to stop at once: the rest must say what they say alone."""
    t = noisy(1)
    batch = t.batch(seed=1, counts=(2, 0, 1, 1, 3), sides=SIDES)
    full = decoder(t, grammar=False).decode(batch)
    alone = [decoder(t, grammar=False).decode(t.encoder.collate([e])) for e in _encoded(t, 1)]
    for a, (b,) in zip(full, alone, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.logprob, b.logprob, atol=1e-4)
        np.testing.assert_allclose(a.expectation, b.expectation, atol=1e-5)


def _encoded(t: Tiny, seed: int) -> list:
    from tests.tiny import random_sample

    return [
        t.encoder.encode(random_sample(seed * 100 + i, n, wh), epoch=0, with_answer=False)
        for i, (n, wh) in enumerate(zip((2, 0, 1, 1, 3), SIDES, strict=True))
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_grammar_admits_only_whole_records(seed: int) -> None:
    t = noisy(seed)
    batch = t.batch(seed=seed, counts=(2, 0, 1, 1, 3), sides=SIDES)
    parser = ObjectsParser(t.tokenizer, t.vocab, t.grid, start=MARKERS[0], end=MARKERS[1], score="geom_desc")
    num_records = 0
    for d, size in zip(decoder(t, grammar=True, budget=60).decode(batch), batch.sizes, strict=True):
        p = parser.parse(d, size=size, readout="argmax")
        whole = p.records[:-1] if d.truncated else p.records
        assert {r.status for r in whole} <= {"ok", "degenerate"}
        assert "stray_text" not in p.flags
        for r in whole:
            bins = [s.bin for s in r.slots]
            assert bins[0] <= bins[2]
            assert bins[1] <= bins[3]
        num_records += len(whole)
    assert num_records > 0


def test_scores_come_from_the_unmasked_distribution() -> None:
    t = noisy(2)
    batch = t.batch(seed=2)
    got = decoder(t, grammar=True, budget=8).decode(batch)[0]
    logits = (
        t.backbone.to_hf()(
            **{
                k: v[:1, : int(batch.prompt_lengths[0])] if v.ndim == 2 and k != "pixel_values" and k != "image_grid_thw" else v
                for k, v in hf_inputs(batch, image_id=t.vocab.image_id, patch_norm=t.backbone.pixel_norm, prompt_only=True).items()
                if k not in ("pixel_values", "image_grid_thw")
            },
            pixel_values=hf_inputs(batch, image_id=t.vocab.image_id, patch_norm=t.backbone.pixel_norm)["pixel_values"][
                : int(batch.image_grid_thw[0].prod())
            ],
            image_grid_thw=batch.image_grid_thw[:1],
        )
        .logits[0, -1]
        .detach()
    )
    want = logits.log_softmax(-1)[got.token_ids[0]]
    assert abs(float(want) - float(got.logprob[0])) < 1e-4


def test_the_budget_truncates() -> None:
    t = noisy(0)
    for d in decoder(t, grammar=False, budget=3).decode(t.batch()):
        assert len(d.token_ids) <= 3
        assert d.truncated == (d.token_ids[-1] != t.vocab.end_id)
    with pytest.raises(ValueError, match="max_new_tokens"):
        decoder(t, grammar=False, budget=0)
