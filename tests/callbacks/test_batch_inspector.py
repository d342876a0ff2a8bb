"""Each check of the first batch can fail: one field of a right batch is made wrong, and the check that guards it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coordvlm.callbacks.batch_inspector import check_batch, check_read_back, inspect_batch
from coordvlm.contracts import Batch, Contract, ResizeRule
from coordvlm.coords.grid import Grid
from coordvlm.reports.inspect_page import Check
from coordvlm.sequence.parse import ObjectsParser
from coordvlm.utils.errors import ContractError
from tests.tiny import COORD_TOKEN, MARKERS, MERGE, PATCH, Tiny, random_sample, tiny

SAMPLES = {s.id: s for s in (random_sample(0, 2, (48, 32)), random_sample(1, 0, (32, 32)), random_sample(2, 3, (32, 64)))}
CONTRACT = Contract(
    coords="k999", num_bins=1000, scale=999, format="objects", order="scan", prompt="p", class_list=False, markers=MARKERS,
    coord_token=COORD_TOKEN, end_token="<|im_end|>", resize=ResizeRule(mode="smart", patch=PATCH, merge=MERGE),
)
TOKENS, ENDS, OUTSIDE, PREDICTS, TEXT, INDEX, INSIDE = (
    "at least one supervised token",
    "every answer ends its turn",
    "no image token, prompt token or padding is supervised",
    "every supervised position predicts its own target",
    "decoded supervised ids equal answer + end of turn",
    "slots found from ids alone equal the batch's",
    "every coordinate is inside the image",
)


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny()


@pytest.fixture(scope="module")
def batch(model: Tiny) -> Batch:
    return model.encoder.collate([model.encoder.encode(s, epoch=0) for s in SAMPLES.values()])


def parser(model: Tiny, grid: Grid | None = None) -> ObjectsParser:
    return ObjectsParser(model.tokenizer, model.vocab, grid or model.grid, start=MARKERS[0], end=MARKERS[1], score="one")


def test_answers_read_back_give_the_true_boxes_and_a_planted_convention_does_not(model: Tiny, batch: Batch) -> None:
    def read(given: Batch, **changes: object) -> Check:
        settings = {"parser": parser(model), **changes}
        return check_read_back(given, SAMPLES, model.encoder.target, settings["parser"], CONTRACT, epoch=0)

    assert read(batch).ok
    assert "of a step" in read(batch).detail
    assert not read(replace(batch, sizes=tuple((h, w) for w, h in batch.sizes))).ok
    ids = batch.input_ids.clone()
    at = int(batch.slot_row[0]) + 1
    ids.view(-1)[[at, at + 1]] = ids.view(-1)[[at + 1, at]]
    wrong = read(replace(batch, input_ids=ids))
    assert not wrong.ok
    assert str(batch.ids[0]) in wrong.detail


def failed(batch: Batch, model: Tiny) -> set[str]:
    return {c.name for c in check_batch(batch, SAMPLES, model.encoder.target, model.vocab, CONTRACT, epoch=0) if not c.ok}


def test_a_right_batch_passes(model: Tiny, batch: Batch) -> None:
    checks = check_batch(batch, SAMPLES, model.encoder.target, model.vocab, CONTRACT, epoch=0)
    assert [c.name for c in checks] == [TOKENS, ENDS, OUTSIDE, PREDICTS, TEXT, INDEX, INSIDE]
    assert not failed(batch, model)


def end_unmarked(b: Batch) -> Batch:
    return replace(b, text_is_end=b.text_is_end & (torch.arange(len(b.text_is_end)) != b.text_is_end.nonzero()[0]))


def end_unsupervised(b: Batch) -> Batch:
    keep = torch.arange(len(b.text_row)) != b.text_is_end.nonzero()[0]
    return replace(b, text_row=b.text_row[keep], text_target=b.text_target[keep], text_is_end=b.text_is_end[keep])


def prompt_supervised(b: Batch) -> Batch:
    row = torch.tensor([1])
    return replace(b, text_row=torch.cat((row, b.text_row)), text_target=torch.cat((b.input_ids.flatten()[row + 1], b.text_target)),
                   text_is_end=torch.cat((torch.tensor([False]), b.text_is_end)))


def padding_supervised(b: Batch) -> Batch:
    short = int(b.lengths.argmin())
    row = torch.tensor([short * b.input_ids.shape[1] + int(b.lengths[short]) - 1])
    return replace(b, text_row=torch.cat((b.text_row, row)), text_target=torch.cat((b.text_target, b.input_ids.flatten()[row + 1])),
                   text_is_end=torch.cat((b.text_is_end, torch.tensor([False]))))


def none_supervised(b: Batch) -> Batch:
    none = torch.zeros(0, dtype=torch.long)
    return replace(b, text_row=none, text_target=none, text_is_end=none.bool(), slot_row=none, slot_bin=none, slot_value=none.float())


def swapped_coordinates(b: Batch) -> Batch:
    """x1 and y1 of the first box exchanged, in ids and bins alike: consistent in itself, and another box."""
    order = torch.arange(len(b.slot_bin))
    order[:2] = torch.tensor([1, 0])
    ids = b.input_ids.flatten().clone()
    ids[b.slot_row[:2] + 1] = ids[b.slot_row[:2] + 1].flip(0)
    return replace(b, slot_bin=b.slot_bin[order], input_ids=ids.view_as(b.input_ids))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda b: replace(b, slot_row=b.slot_row + 1), {PREDICTS, TEXT, INDEX}),
        (lambda b: replace(b, text_row=b.text_row - 1), {OUTSIDE, PREDICTS, TEXT}),
        (lambda b: replace(b, slot_bin=(b.slot_bin + 1) % 1000), {PREDICTS, INDEX}),
        (lambda b: replace(b, text_target=b.text_target.roll(1)), {PREDICTS}),
        (lambda b: replace(b, slot_value=b.slot_value + 0.9), {INSIDE}),
        (lambda b: replace(b, slot_value=b.slot_value * torch.nan), {INSIDE}),
        (end_unmarked, {ENDS}),
        (end_unsupervised, {ENDS, TEXT}),
        (prompt_supervised, {OUTSIDE, TEXT}),
        (padding_supervised, {OUTSIDE, TEXT}),
        (none_supervised, {TOKENS, ENDS, TEXT, INDEX}),
        (swapped_coordinates, {TEXT}),
        (lambda b: replace(b, ids=(b.ids[2], b.ids[1], b.ids[0])), {TEXT}),
    ],
)
def test_one_wrong_field_fails_the_checks_that_guard_it(
    model: Tiny, batch: Batch, change: Callable[[Batch], Batch], names: set[str]
) -> None:
    assert failed(change(batch), model) == names


def test_the_page_is_written_and_a_wrong_batch_stops_the_run(model: Tiny, batch: Batch, tmp_path: Path) -> None:
    def run(name: str, given: Batch) -> str:
        parts = (model.encoder.target, model.vocab, CONTRACT)
        inspect_batch(tmp_path / name, given, SAMPLES, *parts, lambda s: s.image, parser=parser(model), limit=2)
        return (tmp_path / name).read_text()

    page = run("right.html", batch)
    assert "&lt;obj_start&gt;" in page
    assert page.count("<img") + page.count("<image") >= 2
    with pytest.raises(ContractError, match=r"nothing was trained \(see .*wrong\.html\)[\s\S]*every coordinate is inside the image"):
        run("wrong.html", replace(batch, slot_value=batch.slot_value + 1))
    assert (tmp_path / "wrong.html").is_file()
