"""Facts every term on questions must satisfy; as ``checks.py``, for counting."""

from __future__ import annotations

import torch
from torch import Tensor

from coordvlm.contracts import Batch, ModelOutput, TermOutput
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm
from tests.losses.checks import decoder
from tests.questions import RAGGED, UNKNOWN, answers_of, make_questions, random_states


def run(term: LossTerm, states: Tensor, batch: Batch) -> TermOutput:
    out: TermOutput = term(Slots(answers_of(states, batch), batch, decoder() if term.decodes else None))
    return out


def assert_is_a_question_term(term: LossTerm) -> None:
    """Sum and items agree, ``needs`` is complete, nothing to learn is 0 with a graph, bf16 is widened, gradcheck holds."""
    batch = make_questions(RAGGED)
    states = random_states(batch)
    out = run(term, states, batch)
    assert out.sum.ndim == 0
    assert out.sum.dtype == torch.float64
    assert out.per_item is not None
    assert out.item_sample is not None
    assert len(out.per_item) == len(out.item_sample) >= int(out.per_item.count_nonzero())
    assert len(out.per_item) >= term.count(batch) > 0
    assert torch.allclose(out.per_item.sum(), out.sum)
    assert not out.per_item.requires_grad
    assert all(not value.requires_grad for value, _ in out.logs.values())
    for b, ask in enumerate(RAGGED):
        alone = make_questions([ask])
        part = run(term, states[b : b + 1, : alone.input_ids.shape[1]], alone)
        assert torch.allclose(out.per_item[out.item_sample == b].sum(), part.sum)
    given = {name: getattr(answers_of(states, batch), name).detach() for name in term.needs}
    decode = decoder() if term.decodes else None
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        low = {name: value.to(dtype) for name, value in given.items()}
        found = term(Slots(ModelOutput(**low), batch, decode))
        exact = term(Slots(ModelOutput(**{name: value.double() for name, value in low.items()}), batch, decode))
        assert found.sum.dtype == torch.float32
        assert torch.allclose(found.sum.double(), exact.sum, rtol=1e-5)
    assert torch.autograd.gradcheck(lambda x: run(term, x, batch).sum, (states,), fast_mode=True)
    _assert_nothing_to_learn_is_zero(term)


def _assert_nothing_to_learn_is_zero(term: LossTerm) -> None:
    """Questions of which nothing is known."""
    batch = make_questions([UNKNOWN] * 2)
    states = random_states(batch)
    out = run(term, states, batch)
    assert float(out.sum.detach()) == 0.0
    assert term.count(batch) == 0
    out.sum.backward()
    assert states.grad is not None
    assert not states.grad.any()
    assert all(float(value) == 0 and count == 0 for value, count in out.logs.values())
