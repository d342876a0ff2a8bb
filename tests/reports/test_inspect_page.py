"""The first-batch page shows what is supervised and what each bin means."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from coordvlm.contracts import Batch
from coordvlm.reports.inspect_page import (
    BatchPage,
    Check,
    SlotRow,
    Token,
    collapse,
    render_batch_text,
    slot_rows,
    write_batch_page,
)
from coordvlm.reports.overlay import GREEN, RED
from tests.reports.conftest import make_contract
from tests.reports.html_check import read

SIZE = (200, 100)
TRUE = (20.0, 10.0, 100.0, 60.0)


def make_batch() -> Batch:
    """Two samples; the second has one box of 200 x 100 source px at TRUE."""
    empty, norm = torch.zeros(0), [TRUE[0] / 200, TRUE[1] / 100, TRUE[2] / 200, TRUE[3] / 100]
    bins = [round(999 * v) for v in norm]
    return Batch(
        empty, empty, empty, empty, empty, empty, empty, empty, empty, empty, slot_row=torch.arange(8),
        slot_bin=torch.tensor([1, 2, 3, 4, *bins]), slot_value=torch.tensor([0.0, 0, 0, 0, *norm]),
        slot_axis=torch.tensor([0, 1, 2, 3] * 2), box_slot=torch.arange(8).reshape(2, 4),
        box_sample=torch.tensor([0, 1]), box_prev=torch.tensor([-1, -1]), counts={}, ids=(1, 2), sizes=((50, 50), SIZE),
    )


@pytest.fixture
def item() -> BatchPage:
    slots = slot_rows(make_batch(), 1, make_contract(), ["<b>cat</b>"])
    tokens = [
        Token("<|prompt|>", "text", False), Token("<obj_start>", "marker", True), Token("<b>cat</b>", "text", True),
        Token("\n", "text", True),
        *(Token(f"<|coord_{s.bin}|>", "coord", True) for s in slots), Token("<obj_end>", "marker", True), Token("<|im_end|>", "end", True),
    ]
    prompt = "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 36 + "<|vision_end|>Describe <script>"
    image = Image.new("RGB", SIZE, (128, 128, 128))
    return BatchPage("id <7>", image, SIZE, prompt, tokens, slots, (("cat", TRUE),), ("1 object left out",))


def test_slots_are_decoded_through_the_contract() -> None:
    rows = slot_rows(make_batch(), 1, make_contract(), ["cat"])
    assert [r.axis for r in rows] == [0, 1, 2, 3]
    assert [r.bin for r in rows] == [100, 100, 500, 599]
    assert rows[0].value_px == pytest.approx(100 / 999 * 200)
    assert [r.true_px for r in rows] == pytest.approx(TRUE, abs=1e-4)
    assert rows[3].error_px == pytest.approx(599 / 999 * 100 - 60, abs=1e-4)


def test_boxes_are_made_of_decoded_bins_not_of_the_truth(item: BatchPage) -> None:
    shifted = [SlotRow(s.object, s.desc, s.axis, s.bin, s.value_norm, s.value_px + 30, s.true_px) for s in item.slots]
    page = BatchPage(item.sample_id, item.image, item.size, "", [], shifted, item.true_boxes)
    (_, box), = page.decoded_boxes()
    assert box == pytest.approx([v + 30 for v in TRUE], abs=0.2)
    lacking = BatchPage(item.sample_id, item.image, item.size, "", [], shifted[:3])
    assert lacking.decoded_boxes() == []


def test_runs_of_a_placeholder_are_collapsed() -> None:
    assert collapse("a" + "<|image_pad|>" * 36 + "b") == "a<|image_pad|> x 36b"
    assert collapse("<|im_end|><|im_end|>") == "<|im_end|><|im_end|>"
    assert collapse("<|a|>" * 3 + "<|b|>" * 4) == "<|a|> x 3<|b|> x 4"


def test_page_shows_prompt_chips_slots_and_checks(item: BatchPage, tmp_path: Path) -> None:
    checks = [Check("no image token is supervised", True), Check("decoded ids equal the answer", False, "sample <7>")]
    page = read(write_batch_page(tmp_path / "batch.html", [item], checks=checks, contract=make_contract()))
    text = " ".join(" ".join(page.text).split())
    for part in (
        "1 of 2 checks failed", "no image token is supervised", "sample <7>", "<|image_pad|> x 36", "<|vision_end|>Describe <script>",
        "Answer: 10 tokens, 9 supervised", "1 object left out", make_contract().hash(),
        "0 <b>cat</b> x1 100 0.10010 20.02 20.00 +0.020",
    ):
        assert part in text, part
    chips = [a["class"] for tag, a in page.tags if tag == "span" and str(a.get("class")).startswith("chip")][5:]  # after the legend
    assert chips == [f"chip k-{k}" for k in ("none", "marker", "text", "text", *["coord"] * 4, "marker", "end")]


def test_the_picture_has_true_and_decoded_boxes(item: BatchPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coordvlm.reports import inspect_page

    seen: list[Image.Image] = []
    original = inspect_page.page.picture
    monkeypatch.setattr(inspect_page.page, "picture", lambda image, alt: (seen.append(image), original(image, alt))[1])
    shifted = [SlotRow(s.object, s.desc, s.axis, s.bin, s.value_norm, s.value_px + 30, s.true_px) for s in item.slots]
    write_batch_page(tmp_path / "batch.html", [BatchPage(1, item.image, SIZE, "", [], shifted, (("", TRUE),))])
    assert seen[0].size == (400, 200)
    assert seen[0].getpixel((40, 60)) == GREEN
    assert seen[0].getpixel((2 * 50, 150)) == RED


def test_digits_are_drawn_and_counted_as_they_are_read(item: BatchPage, tmp_path: Path) -> None:
    written = BatchPage(1, item.image, SIZE, "", [Token("20", "text", True)], [], (("cat", TRUE),), read_boxes=[("cat", TRUE)])
    assert written.decoded_boxes() == [("cat", TRUE)]
    text = " ".join(read(write_batch_page(tmp_path / "batch.html", [written])).text)
    assert "1 annotated · 1 in the answer" in text
    assert "read from the answer's digits" in text
    assert "decoded from bins" not in text
    assert "No coordinate is supervised" not in text
    assert "ordinary text" in text
    console = Console(width=160, record=True, file=io.StringIO())
    render_batch_text([written], console)
    assert "cat 20.00, 10.00, 100.00, 60.00" in console.export_text()


def test_an_empty_batch_is_said_to_be_empty(tmp_path: Path) -> None:
    text = " ".join(read(write_batch_page(tmp_path / "batch.html", [])).text)
    assert "The batch is empty." in text
    assert "Nothing was checked." in text


def test_terminal_shows_the_same_without_markup(item: BatchPage) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    render_batch_text([item], console, checks=[Check("a [red]rule", False, "here")])
    text = console.export_text()
    answer = "<obj_start><b>cat</b>\\n<|coord_100|>"
    for part in ("FAILED a [red]rule here", "<|image_pad|> x 36", answer, "20.02", "+0.020", "1 object left out"):
        assert part in text, part
