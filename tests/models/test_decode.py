"""The decode loop against the library's ``generate``, and the grammar's promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coordvlm.models.decode import Decoder
from coordvlm.sequence.grammar import ObjectsGrammar
from coordvlm.sequence.parse import ObjectsParser
from tests.tiny import FAMILIES, MARKERS, PATCH, Tiny, hf_inputs, tiny

SIDES = ((48, 32), (32, 32), (32, 64), (16, 16), (64, 64))


def decoder(t: Tiny, *, grammar: bool, budget: int = 24) -> Decoder:
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
    return Decoder(t.backbone, t.grid.bin_values(), max_new_tokens=budget, grammar=g, mass_radius=10, local_window=16)


def noisy(seed: int, **kwargs: object) -> Tiny:
    """Larger random weights, so that greedy answers differ between images and some end early."""
    t = tiny(seed=seed, **kwargs)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in t.backbone.parameters():
            if p.ndim >= 2:
                p.add_(torch.randn(p.shape, generator=gen) * 0.15)
    return t


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_generate(seed: int, tied: bool, family: str) -> None:
    t = noisy(seed, tied=tied, family=family)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_layers_keep_their_cache_while_decoding(family: str) -> None:
    """The library drops the cache of a layer that is checkpointed in training mode."""
    plain, checkpointed = noisy(0, family=family), noisy(0, family=family, checkpoint_every=1)
    assert checkpointed.backbone.hf.training
    for a, b in zip(*(decoder(t, grammar=False).decode(t.batch()) for t in (plain, checkpointed)), strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_array_equal(a.logprob, b.logprob)


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


def counted(t: Tiny, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of the language model from now on."""
    calls: list[int] = []
    inner = t.backbone.hidden

    def hidden(input_ids: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        calls.append(len(input_ids))
        return inner(input_ids, *args, **kwargs)

    monkeypatch.setattr(t.backbone, "hidden", hidden)
    return calls


class OneRowStopsAtEachStep:
    """A grammar in which row b may end its turn at step ``stops[b]`` only, and must say one word before and after it."""

    WORD = 300

    def __init__(self, num_columns: int, end: int, stops: list[int]) -> None:
        self.num_columns, self.end, self.stops = num_columns, end, torch.tensor(stops)

    def start(self, batch_size: int, device: object) -> torch.Tensor:
        return torch.stack((torch.arange(batch_size), torch.zeros(batch_size, dtype=torch.long)), -1)

    def allowed(self, state: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros((len(state), self.num_columns), dtype=torch.bool)
        ends = self.stops[state[:, 0]] == state[:, 1]
        mask[torch.arange(len(state)), torch.where(ends, self.end, self.WORD)] = True
        return mask

    def advance(self, state: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return torch.stack((state[:, 0], state[:, 1] + 1), -1)


def test_a_row_that_is_done_stays_done_while_it_is_carried_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows ending one by one, fewer at a time than are worth compacting, must still leave, and the last one ends the decode."""
    t = tiny()
    stops = [0, 1, 2, 3, 4, 5, 6, 7]
    batch = t.batch(counts=(1,) * 8, sides=((32, 32),) * 8)
    d = decoder(t, grammar=False, budget=30)
    d.grammar = OneRowStopsAtEachStep(t.backbone.num_columns, t.vocab.end_id, stops)
    calls = counted(t, monkeypatch)
    got = d.decode(batch)
    assert [len(x.token_ids) for x in got] == [s + 1 for s in stops]
    assert not any(x.truncated for x in got)
    assert calls == [8, 8, 6, 6, 4, 3, 2, 1]  # the prefill, then seven steps; compacted once a quarter is done


def unmasked_step(t: Tiny, hf: torch.nn.Module, batch: object, b: int, answer: np.ndarray) -> torch.Tensor:
    """float[n, V] logits of the exported model that predict each token of an answer, by one plain forward."""
    patches = batch.image_grid_thw.prod(-1).tolist()
    low, length = sum(patches[:b]), int(batch.prompt_lengths[b])
    ids = torch.cat((batch.input_ids[b, :length], torch.from_numpy(answer)))[None]
    pixels = t.backbone.pixel_norm(batch.pixels[low : low + patches[b]]).view(-1, 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1).flatten(1)
    with torch.no_grad():
        out = hf(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == t.vocab.image_id).int(),
            pixel_values=pixels,
            image_grid_thw=batch.image_grid_thw[b : b + 1],
        )
    return out.logits[0, length - 1 : -1].double()


@pytest.mark.parametrize("grammar", [False, True])
def test_read_outs_and_scores_equal_the_exported_model_at_every_step(grammar: bool) -> None:
    t = noisy(2)
    batch = t.batch(seed=2, counts=(2, 0, 1, 1, 3), sides=SIDES)
    hf = t.backbone.to_hf()
    coord = torch.from_numpy(t.vocab.coord_ids)
    values = np.arange(1000) / 999
    num_slots = 0
    for b, d in enumerate(decoder(t, grammar=grammar, budget=40).decode(batch)):
        z = unmasked_step(t, hf, batch, b, d.token_ids)
        p = z.softmax(-1).numpy()
        s = z[:, coord].softmax(-1).numpy()
        np.testing.assert_allclose(d.logprob, np.log(p[np.arange(len(p)), d.token_ids]), atol=2e-4)
        np.testing.assert_array_equal(d.bin, t.vocab.bins(d.token_ids))
        np.testing.assert_allclose(d.expectation, s @ values, atol=1e-5)
        for i, k in enumerate(d.bin.tolist()):
            if k < 0:
                continue
            num_slots += 1
            near = p[i, t.vocab.coord_ids[max(0, k - 10) : k + 11]].sum()
            assert d.mass[i] == pytest.approx(near, abs=2e-4)
            mode = int(s[i].argmax())
            window = slice(max(0, mode - 16), mode + 17)
            assert d.local[i] == pytest.approx(float((s[i] * values)[window].sum() / s[i][window].sum()), abs=1e-5)
    assert num_slots >= 8


def test_the_grammar_changes_neither_a_row_nor_its_neighbours_when_rows_leave() -> None:
    """States move with their rows: five images together say what each says alone."""
    t = noisy(1)
    with torch.no_grad():  # ends early: rows leave at different steps
        t.backbone.table.weight[t.vocab.end_id] *= 3
    together = decoder(t, grammar=True, budget=60).decode(t.batch(seed=1, counts=(2, 0, 1, 1, 3), sides=SIDES))
    alone = [decoder(t, grammar=True, budget=60).decode(t.encoder.collate([e]))[0] for e in _encoded(t, 1)]
    assert len({len(a.token_ids) for a in alone}) > 1
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.mass, b.mass, atol=1e-4)
