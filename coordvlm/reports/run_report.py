"""The page of a run: one self-contained HTML file that says what was run, what came out, and what is missing."""

from __future__ import annotations

from pathlib import Path

from coordvlm.reports import base_beside, page, sections_head, sections_results, sections_run
from coordvlm.reports.summary import RunSummary

__all__ = ["RunSummary", "write_run_report"]

_CONTENTS = (
    ("base", "Base beside tuned"), ("metrics", "Results"), ("pictures", "Pictures"), ("pixels", "Pixel error"), ("overlap", "Overlap"),
    ("agreement", "Coordinates"), ("classes", "Classes"), ("readouts", "Read-outs"), ("drops", "Parser"), ("training", "Training"),
    ("contract", "Contract"), ("data", "Data"), ("timing", "Time"), ("record", "Record"),
)


def write_run_report(path: Path, run: RunSummary) -> Path:
    """Write the page; returns its path. Parts that ``run`` lacks are named on the page instead of raising.

    Raises:
        OutputError: the file cannot be written; an earlier page stays as it was.
    """
    body = [
        sections_head.headline(run),
        base_beside.beside(run.base),
        sections_head.results(run),
        sections_results.pictures(run),
        sections_results.pixel_errors(run),
        sections_results.overlap(run),
        sections_results.agreement(run),
        sections_results.classes(run),
        sections_results.readouts(run),
        sections_results.drops(run),
        sections_run.course(run),
        sections_head.contract(run),
        sections_run.data(run),
        sections_run.timing(run),
        sections_run.record(run),
    ]
    contents = [(anchor, title) for anchor, title in _CONTENTS if anchor != "base" or run.base is not None]
    name = run.choice("experiment") or run.choice("loss") or "run"
    return page.write(path, page.document(f"{name} ({run.status}) - coordvlm", body, contents=contents))
