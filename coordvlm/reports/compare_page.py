"""The page of a comparison: one self-contained HTML file, the verdict first."""

from __future__ import annotations

from pathlib import Path

from coordvlm.reports import compare_evidence as evidence
from coordvlm.reports import compare_sections as sections
from coordvlm.reports import page
from coordvlm.reports.compare_data import Comparison

_CONTENTS = (
    ("verdict", "Verdict"), ("metrics", "Metrics"), ("differences", "Differences"), ("course", "Training"), ("pixels", "Pixel error"),
    ("shares", "Loss shares"), ("drops", "Parser"), ("readouts", "Read-outs"), ("cost", "Cost"), ("pictures", "Pictures"),
    ("protocol", "Protocol"), ("runs", "Runs"),
)


def write_comparison(path: Path, c: Comparison) -> Path:
    """Write the page; returns its path.

    Raises:
        OutputError: the file cannot be written; an earlier page stays as it was.
    """
    body = [
        sections.headline(c), sections.verdicts(c), sections.metrics(c), sections.differences(c), sections.course(c),
        evidence.pixel_errors(c), evidence.shares(c), evidence.drops(c), evidence.readouts(c), evidence.cost(c), evidence.pictures(c),
        evidence.protocol(c), evidence.run_table(c),
    ]
    names = ", ".join(g.short for g in c.groups)
    return page.write(path, page.document(f"{names} - coordvlm comparison", body, contents=_CONTENTS))
