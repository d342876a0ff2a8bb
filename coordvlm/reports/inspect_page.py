"""The page of a run's first batch: what the model is shown, what it is taught, and whether the coordinates mean what they say.

Boxes are drawn from *bins decoded through the contract*, in red over the annotated ones in green, so a convention that is off
(another extent, swapped axes, the wrong frame) is seen at once. Where coordinates are digits, the red ones are parsed from the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordvlm.contracts import COORD, END, MARKER, TEXT, Batch, Contract
from coordvlm.coords.grid import Grid, to_px
from coordvlm.reports import page
from coordvlm.reports.overlay import Box, draw_overlay
from coordvlm.reports.page import Child, Markup, definitions, fold, missing, section, table, tag, visible

AXES = ("x1", "y1", "x2", "y2")
#: ``Encoded.answer_kind`` -> the name of a chip's colour.
KINDS: Mapping[int, str] = {TEXT: "text", MARKER: "marker", COORD: "coord", END: "end"}
_LEGEND = {"text": "text", "marker": "marker", "coord": "coordinate", "end": "end of turn", "none": "not supervised"}
_COLOURS = {"text": "cyan", "marker": "magenta", "coord": "green", "end": "yellow", "none": "bright_black"}
_RUN = re.compile(r"(<\|?[^<>\s]+\|?>)(?:\s*\1){2,}")


@dataclass(frozen=True)
class Token:
    """One token of the answer (or of the prompt). ``kind``: ``text``, ``marker``, ``coord`` or ``end``."""

    text: str
    kind: str
    supervised: bool


@dataclass(frozen=True)
class SlotRow:
    """One supervised coordinate: its bin, what the bin means, and the annotated value.

    Args:
        object: index of the box in this sample's answer. axis: 0..3 for x1, y1, x2, y2.
        value_norm, value_px: the bin decoded through the contract, in [0, 1] and in source pixels.
        true_px: the unquantised target in source pixels.
    """

    object: int
    desc: str
    axis: int
    bin: int
    value_norm: float
    value_px: float
    true_px: float

    @property
    def error_px(self) -> float:
        return self.value_px - self.true_px


@dataclass(frozen=True)
class BatchPage:
    """One sample of the batch.

    Args:
        image: the displayed frame, which ``size`` and all pixel values refer to.
        prompt_text: the decoded prompt, special tokens kept; runs of one placeholder are collapsed here.
        tokens: the answer. slots: in the order of the answer.
        true_boxes: annotated (description, xyxy source px), straight from the sample and not through the collator.
        notes: anything else worth a line (objects left out, model size of the image).
        read_boxes: of a format without bins, (description, xyxy source px) as the parser reads them in the answer; else None.
        origin: what the read boxes are, where no answer is written (counting: squares around points); else "".
    """

    sample_id: int | str
    image: Image.Image
    size: tuple[int, int]
    prompt_text: str
    tokens: Sequence[Token]
    slots: Sequence[SlotRow]
    true_boxes: Sequence[tuple[str, tuple[float, float, float, float]]] = ()
    notes: Sequence[str] = ()
    read_boxes: Sequence[tuple[str, tuple[float, float, float, float]]] | None = None
    origin: str = ""

    def decoded_boxes(self) -> list[tuple[str, tuple[float, float, float, float]]]:
        """Boxes made of the decoded slots, an object without all four axes is left out; ``read_boxes`` in a format without bins."""
        if self.read_boxes is not None:
            return list(self.read_boxes)
        out = []
        for _, group in groupby(self.slots, key=lambda s: s.object):
            rows = {s.axis: s for s in group}
            if set(rows) == {0, 1, 2, 3}:
                x1, y1, x2, y2 = (rows[i].value_px for i in range(4))
                out.append((rows[0].desc, (x1, y1, x2, y2)))
        return out


@dataclass(frozen=True)
class Check:
    """An assertion made on the batch."""

    name: str
    ok: bool
    detail: str = ""


def slot_rows(batch: Batch, sample: int, contract: Contract, descs: Sequence[str]) -> list[SlotRow]:
    """The slots of one sample, decoded through the contract. ``descs``: description of each of its boxes, in answer order."""
    if not contract.num_bins:  # digits have no slots
        return []
    grid = Grid(contract.coords, contract.num_bins, contract.scale)
    width, height = batch.sizes[sample]
    boxes: NDArray[np.int64] = batch.box_slot[batch.box_sample == sample].cpu().numpy()
    bins, values = batch.slot_bin.cpu().numpy(), batch.slot_value.cpu().numpy()
    rows = []
    for number, slots in enumerate(boxes):
        norm = grid.decode(bins[slots])
        px, true = to_px(norm, width, height), to_px(values[slots], width, height)
        desc = descs[number] if number < len(descs) else "?"
        rows += [SlotRow(number, desc, a, int(bins[slots[a]]), float(norm[a]), float(px[a]), float(true[a])) for a in range(4)]
    return rows


def collapse(text: str) -> str:
    """Three or more of one token in a row become ``<|image_pad|> x 36``."""
    return _RUN.sub(lambda m: f"{m[1]} x {m[0].count(m[1])}", text)


def write_batch_page(
    path: Path, pages: Sequence[BatchPage], *, checks: Sequence[Check] = (), contract: Contract | None = None,
    title: str = "First batch",
) -> Path:
    """Write the page; returns its path. A failed check is announced at the top."""
    failed = [c for c in checks if not c.ok]
    alert = None
    if failed:
        words = f"{len(failed)} of {len(checks)} checks failed"
        alert = tag("div", tag("strong", words), "A model trained on this learns the wrong thing.", class_="alert bad", role="alert")
    named: list[tuple[Child, Child]] = []
    if contract is not None:
        named = [("contract", tag("code", contract.hash())), ("coordinates", contract.coords), ("format", contract.format)]
    facts = definitions([*named, ("samples shown", str(len(pages)))])
    samples = [_sample(i, item) for i, item in enumerate(pages)] or [section("samples", "Samples", missing("The batch is empty."))]
    body = [alert, tag("h1", title), facts, _checks(checks), samples]
    contents = [("checks", "Checks"), *((f"sample-{i}", f"Sample {item.sample_id}") for i, item in enumerate(pages))]
    return page.write(path, page.document(f"{title} - coordvlm", body, contents=contents))


def _checks(checks: Sequence[Check]) -> Markup:
    items = []
    for check in checks:
        mark = tag("span", "ok" if check.ok else "failed", class_=f"pill mark {'good' if check.ok else 'bad'}")
        items.append(tag("li", mark, check.name, tag("span", f": {check.detail}", class_="note") if check.detail else None))
    return section("checks", "Checked", tag("ul", items, class_="checks") if items else missing("Nothing was checked."))


def _sample(index: int, item: BatchPage) -> Markup:
    truth = [Box(box, desc) for desc, box in item.true_boxes]
    decoded = [Box(box) for _, box in item.decoded_boxes()]
    view = page.picture(draw_overlay(item.image, truth, decoded, size=item.size), f"sample {item.sample_id}")
    origin = item.origin or ("decoded from bins" if item.read_boxes is None else "read from the answer's digits")
    green, red = (tag("span", tag("i", class_=c), words) for c, words in (("green", "annotated"), ("red", origin)))
    keys = tag("div", green, red, class_="legend")
    worst = max((abs(s.error_px) for s in item.slots), default=math.nan)
    facts = [f"{item.size[0]} × {item.size[1]} px", f"{len(item.true_boxes)} annotated", f"{len(item.decoded_boxes())} in the answer"]
    facts += [f"largest error {worst:.2f} px"] if math.isfinite(worst) else []
    supervised = sum(t.supervised for t in item.tokens)
    left = tag("figure", keys, view, tag("figcaption", " · ".join([*facts, *item.notes])))
    if item.origin:  # nothing is written
        asked = tag("div", tag("h3", "Prompt"), tag("pre", collapse(item.prompt_text)))
        return section(f"sample-{index}", f"Sample {visible(item.sample_id)}", tag("div", left, asked, class_="sample"))
    right = tag(
        "div", tag("h3", "Prompt"), tag("pre", collapse(item.prompt_text)),
        tag("h3", f"Answer: {len(item.tokens)} tokens, {supervised} supervised"), _legend(),
        tag("div", _chips(item.tokens), class_="chips"),
    )
    slots = fold(f"{len(item.slots)} coordinates", _slots(item)) if len(item.slots) > 24 else _slots(item)
    return section(f"sample-{index}", f"Sample {visible(item.sample_id)}", tag("div", left, right, class_="sample"), slots)


def _legend() -> Markup:
    return tag("div", [tag("span", tag("span", words, class_=f"chip k-{kind}")) for kind, words in _LEGEND.items()], class_="legend")


def _chips(tokens: Sequence[Token]) -> Child:
    return [tag("span", text, class_=f"chip k-{kind}") for kind, text in _shown(tokens)] or missing("No answer.")


def _shown(tokens: Sequence[Token]) -> Iterator[tuple[str, str]]:
    """(colour, text) of each token; line ends and tabs are spelt out, as they are tokens too."""
    for token in tokens:
        kind = token.kind if token.supervised and token.kind in _LEGEND else "none"
        yield kind, token.text.replace("\n", "\\n").replace("\t", "\\t") or "∅"


def _slots(item: BatchPage) -> Markup:
    if item.read_boxes is not None:
        return missing("Coordinates are ordinary text in this format: they are supervised as text tokens and have no bins.")
    if not item.slots:
        return missing("No coordinate is supervised in this sample.")
    head = ("object", "description", "axis", "bin", "decoded", "decoded, px", "true, px", "error, px")
    rows = [(s.object, s.desc, AXES[s.axis], s.bin, *_numbers(s)) for s in item.slots]
    return table(head, rows, text_columns=(0, 1, 2), class_="wide")


def _numbers(s: SlotRow) -> tuple[str, str, str, str]:
    return (f"{s.value_norm:.5f}", f"{s.value_px:.2f}", f"{s.true_px:.2f}", f"{s.error_px:+.3f}")


def render_batch_text(pages: Sequence[BatchPage], console: Console, *, checks: Sequence[Check] = ()) -> None:
    """The same for the terminal (``debug=inspect``), without pictures."""
    for check in checks:
        mark = Text("ok     ", "green") if check.ok else Text("FAILED ", "bold red")
        console.print(mark.append(check.name, "default").append(f" {check.detail}" if check.detail else "", "bright_black"))
    legend = Text("answer: ")
    for kind, words in _LEGEND.items():
        legend.append(words, _COLOURS[kind]).append("  ")
    for item in pages:
        console.rule(Text(f"sample {visible(item.sample_id)} ({item.size[0]} x {item.size[1]} px)"))
        console.print(Text(visible(collapse(item.prompt_text)), "bright_black"))
        if item.origin:
            console.print(Text(visible(", ".join(item.notes))))
            continue
        console.print(legend)
        answer = Text()
        for kind, text in _shown(item.tokens):
            answer.append(visible(text), _COLOURS[kind])
        console.print(answer)
        slots = Table("object", "description", "axis", "bin", "decoded", "decoded px", "true px", "error px", box=None, pad_edge=False)
        for s in item.slots:
            slots.add_row(str(s.object), Text(visible(s.desc)), AXES[s.axis], str(s.bin), *_numbers(s))
        if item.read_boxes is None:
            console.print(slots)
        for desc, box in item.read_boxes or ():
            console.print(Text(visible(f"read from the digits, px: {desc} {', '.join(f'{v:.2f}' for v in box)}")))
        for note in item.notes:
            console.print(Text(visible(note), "bright_black"))
