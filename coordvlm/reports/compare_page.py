"""The page of a comparison: one self-contained HTML file, the verdict first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from coordvlm.reports import compare_evidence as evidence
from coordvlm.reports import compare_foveation as foveation
from coordvlm.reports import compare_sections as sections
from coordvlm.reports import page
from coordvlm.reports.compare_data import Comparison

#: What a comparison of clips has not: overlap, parser, read-outs of one decode, boxes to draw.
_NOT_OF_CLIPS = ("pixels", "drops", "readouts", "pictures")
_CONTENTS = (
    ("looking", "Looking"), ("verdict", "Verdict"), ("metrics", "Metrics"), ("differences", "Differences"), ("course", "Training"),
    ("pixels", "Pixel error"),
    ("shares", "Loss shares"), ("drops", "Parser"), ("readouts", "Read-outs"), ("cost", "Cost"), ("pictures", "Pictures"),
    ("protocol", "Protocol"), ("runs", "Runs"),
)


def write_comparison(path: Path, c: Comparison) -> Path:
    """Write the page; returns its path.

    Raises:
        OutputError: the file cannot be written; an earlier page stays as it was.
    """
    parts: dict[str, Callable[[Comparison], page.Markup]] = {
        "looking": foveation.looks, "verdict": sections.verdicts, "metrics": sections.metrics, "differences": sections.differences,
        "course": sections.course, "pixels": evidence.pixel_errors, "shares": evidence.shares, "drops": evidence.drops,
        "readouts": evidence.readouts, "cost": evidence.cost, "pictures": evidence.pictures, "protocol": evidence.protocol,
        "runs": evidence.run_table,
    }
    absent = ("looking",) if c.foveation is None else _NOT_OF_CLIPS
    if not c.pairs:
        absent = (*absent, "differences")
    shown = [(anchor, title) for anchor, title in _CONTENTS if anchor not in absent]
    names = ", ".join(g.short for g in c.groups)
    body = [sections.headline(c), *(parts[anchor](c) for anchor, _ in shown)]
    return page.write(path, page.document(f"{names} - coordvlm comparison", body, contents=shown))
