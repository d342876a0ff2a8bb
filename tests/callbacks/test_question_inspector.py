"""Each check of the first batch of questions can fail, and a right batch passes in every mode; the page shows what the model sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coordvlm.callbacks.question_inspector import check_questions, inspect_questions, seen_image
from coordvlm.contracts import Batch, Contract, ResizeRule
from coordvlm.reports.inspect_page import Check
from coordvlm.utils.errors import ContractError
from tests.counting import ASK, count_sample, counting
from tests.tiny import COORD_TOKEN, MERGE, PATCH

T = counting()
SAMPLES = {i: count_sample(i, num, size) for i, (num, size) in enumerate([(5, (48, 32)), (0, (32, 32)), (1, (32, 64)), (2, (64, 16))])}
CONTRACT = Contract(
    coords="k999", num_bins=1000, scale=999, format="count", order="rows", prompt="p", class_list=False, markers=ASK,
    coord_token=COORD_TOKEN, end_token="<|im_end|>", resize=ResizeRule(mode="smart", patch=PATCH, merge=MERGE),
)
ENDS, TAUGHT, TARGET, DONE, CELL = (
    "every question ends with its three tokens",
    "no token of the prompt is taught",
    "every target is an annotated point",
    "done where, and only where, all are marked",
    "the target's image token leads back to it",
)


def made(epoch: int = 0, **settings: Any) -> Batch:
    encoder = T.encoder(**settings)
    return encoder.collate([encoder.encode(s, epoch=epoch) for s in SAMPLES.values()])


def checked(batch: Batch) -> list[Check]:
    return check_questions(batch, SAMPLES, T.tokenizer, CONTRACT)


@pytest.mark.parametrize("target", ["next", "nearest"])
@pytest.mark.parametrize("mode", ["regression", "classification", "mixed"])
def test_right_batches_pass_in_every_mode(mode: str, target: str) -> None:
    """Nothing to count among them, which in mode=regression is all marked and not asked."""
    for epoch in range(4):
        found = checked(made(epoch, mode=mode, target=target))
        assert [c.name for c in found] == [ENDS, TAUGHT, TARGET, DONE, CELL]
        assert all(c.ok for c in found), [(c.name, c.detail) for c in found if not c.ok]


def _shifted_rows(b: Batch) -> Batch:
    return replace(b, ask_row=b.ask_row - 1)


def _moved_target(b: Batch) -> Batch:
    return replace(b, ask_xy=b.ask_xy.flip(1))


def _wrong_done(b: Batch) -> Batch:
    return replace(b, ask_done=1 - b.ask_done)


def _unasked_with_target(b: Batch) -> Batch:
    return replace(b, questions=tuple(replace(q, num=q.num + 1) for q in b.questions))


def _other_token(b: Batch) -> Batch:
    return replace(b, token_next=b.token_next.roll(1))


def _taught(b: Batch) -> Batch:
    return replace(b, text_row=b.ask_row[:, 0])


@pytest.mark.parametrize(
    ("spoil", "name"),
    [(_shifted_rows, ENDS), (_taught, TAUGHT), (_moved_target, TARGET), (_wrong_done, DONE), (_unasked_with_target, DONE),
     (_other_token, CELL)],
)
def test_each_check_can_fail(spoil: Callable[[Batch], Batch], name: str) -> None:
    assert not {c.name: c for c in checked(spoil(made()))}[name].ok


def test_the_page_is_written_before_a_wrong_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="every target is an annotated point wrong: "):
        inspect_questions(tmp_path / "first_batch.html", _moved_target(made()), SAMPLES, T.tokenizer, CONTRACT)
    assert "every target is an annotated point" in (tmp_path / "first_batch.html").read_text()


def test_pages_show_the_marked_image_and_the_whole_prompt(tmp_path: Path) -> None:
    batch = made(mode="classification", done_share=1.0, drop=0.0, jitter=0.0, radius=0.1)
    pages, checks = inspect_questions(tmp_path / "first_batch.html", batch, SAMPLES, T.tokenizer, CONTRACT, limit=3)
    assert len(pages) == 3
    assert all(c.ok for c in checks)
    for at, page in enumerate(pages):
        question = batch.questions[at]
        assert page.prompt_text.endswith("".join(ASK))
        assert page.notes[0] == f"{question.marked} of {question.num} red dot marked"
        assert len(page.true_boxes) == question.num - question.marked
        assert len(page.read_boxes) == (question.target is not None)
    for at, sample in enumerate(SAMPLES.values()):  # sides are whole cells, so nothing is resized
        seen, plain = seen_image(batch, at, CONTRACT), sample.image
        assert isinstance(plain, Image.Image)
        assert seen.size == plain.size
        changed = (np.asarray(seen) != np.asarray(plain)).any()
        assert changed == (batch.questions[at].marked > 0)
