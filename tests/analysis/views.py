"""Views of splits made by hand, for the checks of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coordvlm.analysis.checks import CheckSettings
from coordvlm.analysis.checks_view import PhraseView, SplitView
from coordvlm.contracts import ResizeRule
from coordvlm.data.checks import RULES, Fault, box_faults
from coordvlm.reports.audit_data import Finding

SETTINGS = CheckSettings(
    num_examples=5, num_images=200, num_samples=50, full=False, seed=0, near_duplicate_iou=0.85, usual_share=0.9, near_bits=4,
    near_grey=6.0, max_pixels=10**8, max_objects=30, resize=ResizeRule("square", 8, 2, size=(96, 96)),
)


def settings(**changes: Any) -> CheckSettings:
    return replace(SETTINGS, **changes)


#: (image, class number from 1, xyxy)
Box = tuple[int, int, Sequence[float]]


def view(
    boxes: Sequence[Box] = (), *, size: tuple[float, float] = (640, 480), num_images: int = 1,
    names: Sequence[str] = ("dog", "cat"), files: Sequence[Path] | None = None, name: str = "train", phrases: PhraseView | None = None,
    crowd: Sequence[int] = (), generated: bool = False, strict: bool = True,
) -> SplitView:
    """Boxes as (image, class number from 1, xyxy) on images of one size; faults as the sources find them."""
    xyxy = np.asarray([box for _, _, box in boxes], dtype=np.float64).reshape(-1, 4)
    image = np.asarray([i for i, _, _ in boxes], dtype=np.int64)
    wh = np.tile(np.asarray(size, dtype=np.float64), (num_images, 1))
    faults = box_faults(xyxy, wh[image]) if len(xyxy) else np.zeros(0, dtype=np.uint8)
    shown = list(files) if files is not None else [None] * num_images

    def picture(at: int) -> Path | Image.Image:
        return shown[at] or Image.new("RGB", (int(size[0]), int(size[1])))

    return SplitView(
        name=name, member="", trains=name == "train", total=num_images, strict=strict, generated=generated,
        image_ids=np.arange(1, num_images + 1), image_wh=wh, files=shown, image_place=lambda i: f"{name} image {i}", image=picture,
        category_ids=np.arange(1, len(names) + 1), category_names=tuple(names), xyxy=xyxy, ann_image=image,
        ann_category=np.asarray([c for _, c, _ in boxes], dtype=np.int64), crowd=np.isin(np.arange(len(xyxy)), crowd), faults=faults,
        ann_place=lambda a: f"{name} box {a}", ann_value=lambda a: xyxy[a].tolist(), rule=lambda a: RULES[Fault(int(faults[a]))],
        left_out={}, phrases=phrases,
    )


def phrase_view(*rows: tuple[str, int, Sequence[float] | None], generated: bool = False) -> SplitView:
    """(phrase, image, box or None) on 640 x 480 images."""
    xyxy = np.asarray([[np.nan] * 4 if box is None else box for _, _, box in rows], dtype=np.float64).reshape(-1, 4)
    image = np.asarray([i for _, i, _ in rows], dtype=np.int64)
    phrases = PhraseView(
        texts=[text for text, _, _ in rows], image=image, negative=np.asarray(np.isnan(xyxy).any(axis=1)), xyxy=xyxy,
        place=lambda p: f"row {p}",
    )
    boxes = [(i, 1, box) for _, i, box in rows if box is not None]
    return view(boxes, num_images=int(image.max(initial=-1)) + 1, names=("target",), phrases=phrases, generated=generated)


def found(findings: Sequence[Finding], check: str, split: str | None = None) -> Finding:
    """The one finding of a check."""
    hits = [f for f in findings if f.check == check and split in (None, f.split)]
    assert len(hits) == 1, (check, [f"{f.check} {f.split}" for f in findings])
    return hits[0]
