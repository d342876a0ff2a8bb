"""The check of a first batch knows what each mode teaches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from coordvlm.callbacks.question_inspector import check_questions
from tests.counting import ASK, count_sample, counting

CONTRACT: Any = SimpleNamespace(markers=ASK)


@pytest.mark.parametrize("mode", ["regression", "classification", "mixed"])
def test_samples_without_an_object_are_right_in_every_mode(mode: str) -> None:
    """Of nothing all is marked; ``regression`` has no answer to that."""
    t = counting()
    samples = [count_sample(i, number) for i, number in enumerate((0, 1, 4))]
    batch = t.encoder(mode=mode).collate([t.encoder(mode=mode).encode(s, epoch=0) for s in samples])
    checks = check_questions(batch, {s.id: s for s in samples}, t.tokenizer, CONTRACT)
    assert [c.name for c in checks if not c.ok] == []
    batch.ask_done[1] = 1 - batch.ask_done[1]
    wrong = check_questions(batch, {s.id: s for s in samples}, t.tokenizer, CONTRACT)
    assert [c.detail for c in wrong if not c.ok] == [f"wrong: {samples[1].id}"]
