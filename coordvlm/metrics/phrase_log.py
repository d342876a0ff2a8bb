"""What is kept of each phrase: grounding.csv, and what its line in predictions.jsonl holds beside an image's."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

from coordvlm.contracts.sample import PhraseTruth
from coordvlm.metrics.phrases import Outcomes

_BOX = ("x1", "y1", "x2", "y2")
COLUMNS = (
    "id", "source_image", "phrase", "kind", "width", "height", *(f"true_{c}" for c in _BOX), *(f"pred_{c}" for c in _BOX), "iou",
    "right_50", "status", "attempts", "extra_boxes",
)  # fmt: skip


def phrase_fields(truth: PhraseTruth, found: Outcomes) -> dict[int, dict[str, Any]]:
    """Phrase id -> ``phrase``, ``source_image``, ``iou`` (null without a target), ``answer`` (one of ``phrases.STATUSES``)."""
    rows = zip(found.ids.tolist(), truth.phrases, truth.source_image.tolist(), found.iou.tolist(), found.status, strict=True)
    return {
        i: {"phrase": phrase, "source_image": image, "iou": None if math.isnan(iou) else iou, "answer": status}
        for i, phrase, image, iou, status in rows
    }


def phrases_csv(truth: PhraseTruth, found: Outcomes, kinds: Mapping[int, str] | None = None) -> str:
    """One line per phrase under ``COLUMNS``, by ascending id; what there is none of is an empty field. Boxes in source px.

    Args:
        kinds: phrase id -> kind of phrase, where the data name one.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    hit, status = found.hit(0.5), found.status
    for row, i in enumerate(found.ids.tolist()):
        named = (i, int(truth.source_image[row]), truth.phrases[row], (kinds or {}).get(i, ""))
        numbers = (*found.image_wh[row].tolist(), *found.true_xyxy[row].tolist(), *found.pred_xyxy[row].tolist(), float(found.iou[row]))
        right = int(hit[row]) if found.has_target[row] else ""
        ended = (right, status[row], int(found.attempts[row]), int(found.extra[row]))
        writer.writerow([*named, *("" if math.isnan(v) else f"{v:.10g}" for v in numbers), *ended])
    return out.getvalue()
