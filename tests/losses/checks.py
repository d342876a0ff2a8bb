"""Facts every term must satisfy, called by each term's own test file."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from coordvlm.contracts import Batch, ModelOutput, TermOutput
from coordvlm.losses.coord_exp import CoordExp
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm
from tests.batches import K9, RAGGED, make_batch, output_of, random_logits


def decoder(read: str = "expectation", temperature: float = 1.0) -> CoordExp:
    return CoordExp(K9, read=read, temperature=temperature, window=2, top_k=3)


def run(term: LossTerm, logits: Tensor, batch: Batch) -> TermOutput:
    out: TermOutput = term(Slots(output_of(logits, batch), batch, decoder()))
    return out


def assert_is_a_term(term: LossTerm, *, gradcheck: bool = True) -> None:
    """Sum and items agree, ``needs`` is complete, an empty batch is 0 with a graph, bf16 is widened, gradcheck holds.

    Args:
        gradcheck: False for a term that by definition holds a factor fixed; its own test checks the gradient then.
    """
    batch = make_batch(RAGGED)
    logits = random_logits(batch)
    out = run(term, logits, batch)
    assert out.sum.ndim == 0
    assert out.sum.dtype == torch.float64
    assert out.per_item is not None
    assert out.item_sample is not None
    # Items outside a term's subset may be listed, as zeros.
    assert len(out.per_item) == len(out.item_sample) >= int(out.per_item.count_nonzero())
    assert len(out.per_item) >= term.count(batch) > 0
    assert term.subset is not None or len(out.per_item) == term.count(batch)
    assert torch.allclose(out.per_item.sum(), out.sum)
    assert not out.per_item.requires_grad
    assert all(not value.requires_grad for value, _ in out.logs.values())
    _assert_items_know_their_sample(term, out)
    _assert_needs_are_complete(term, batch)
    _assert_empty_is_zero(term)
    _assert_low_precision_is_widened(term, batch)
    assert not gradcheck or torch.autograd.gradcheck(lambda x: run(term, x, batch).sum, (logits,), fast_mode=True)


def _assert_items_know_their_sample(term: LossTerm, whole: TermOutput) -> None:
    assert whole.per_item is not None
    assert whole.item_sample is not None
    logits = random_logits(make_batch(RAGGED))
    for b, boxes in enumerate(RAGGED):
        alone = make_batch([boxes])
        part = run(term, logits[b : b + 1, : alone.input_ids.shape[1]], alone)
        assert torch.allclose(whole.per_item[whole.item_sample == b].sum(), part.sum)


def _assert_needs_are_complete(term: LossTerm, batch: Batch) -> None:
    full = output_of(random_logits(batch), batch)
    only = ModelOutput(**{name: getattr(full, name) for name in term.needs})
    assert torch.isfinite(term(Slots(only, batch, decoder() if term.decodes else None)).sum)


def _assert_empty_is_zero(term: LossTerm) -> None:
    """No box and, for text terms, no row at all: rows are indices, so emptying them is enough."""
    batch = make_batch([(), ()])
    none = torch.empty(0, dtype=torch.long)
    batch = replace(batch, text_row=none, text_target=none, text_is_end=none.bool())
    logits = random_logits(batch)
    out = run(term, logits, batch)
    assert float(out.sum.detach()) == 0.0
    assert term.count(batch) == 0
    out.sum.backward()
    assert logits.grad is not None
    assert not logits.grad.any()
    assert all(float(value) == 0 and count == 0 for value, count in out.logs.values())


def _assert_low_precision_is_widened(term: LossTerm, batch: Batch) -> None:
    full = output_of(random_logits(batch), batch)
    given = {name: getattr(full, name).detach() for name in term.needs}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        low = {name: value.to(dtype) for name, value in given.items()}
        out = term(Slots(ModelOutput(**low), batch, decoder()))
        exact = term(Slots(ModelOutput(**{name: value.double() for name, value in low.items()}), batch, decoder()))
        assert out.sum.dtype == torch.float32
        assert torch.allclose(out.sum.double(), exact.sum, rtol=1e-5)
