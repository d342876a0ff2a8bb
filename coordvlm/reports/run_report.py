"""The page of a run: one self-contained HTML file that says what was run, what came out, and what is missing."""

from __future__ import annotations

from pathlib import Path

from coordvlm.reports import base_beside, page, sections_grounding, sections_head, sections_results, sections_run
from coordvlm.reports import sections_count_pictures as count_pictures
from coordvlm.reports import sections_counting as counting
from coordvlm.reports import sections_foveation as foveation
from coordvlm.reports import sections_looks as looks
from coordvlm.reports.summary import RunSummary

__all__ = ["RunSummary", "write_run_report"]

_CONTENTS = (
    ("base", "Base beside tuned"), ("metrics", "Results"), ("pictures", "Pictures"), ("pixels", "Pixel error"), ("overlap", "Overlap"),
    ("agreement", "Coordinates"), ("classes", "Classes"), ("readouts", "Read-outs"), ("drops", "Parser"), ("training", "Training"),
    ("contract", "Contract"), ("data", "Data"), ("timing", "Time"), ("record", "Record"),
)
_GROUNDING_CONTENTS = (
    ("base", "Base beside tuned"), ("metrics", "Results"), ("controls", "Controls"), ("pictures", "Pictures"), ("overlap", "Accuracy"),
    ("failures", "Failures"), ("rejection", "Rejection"), ("offset", "Offset"), ("pixels", "Pixel error"), ("readouts", "Read-outs"),
    ("drops", "Parser"), ("training", "Training"), ("contract", "Contract"), ("data", "Data"), ("timing", "Time"), ("record", "Record"),
)

_COUNTING_CONTENTS = (
    ("base", "Base beside tuned"), ("metrics", "Results"), ("checklist", "Checklist"), ("pixels", "Pixel error"), ("regions", "Regions"),
    ("buckets", "What was asked"), ("done", "Done"), ("counts", "Counts"), ("pictures", "Steps"), ("counted", "Counted images"),
    ("readouts", "Read-outs"), ("training", "Training"), ("contract", "Contract"), ("data", "Data"), ("timing", "Time"),
    ("record", "Record"),
)

_CLIP_CONTENTS = (
    ("base", "Base beside tuned"), ("metrics", "Results"), ("arms", "Ways of looking"), ("looks", "Where it looks"),
    ("sheet", "Attention"), ("frames", "Frames"), ("samples", "Answers"), ("readouts", "Read-outs"), ("training", "Training"),
    ("contract", "Contract"), ("data", "Data"), ("timing", "Time"), ("record", "Record"),
)


def write_run_report(path: Path, run: RunSummary) -> Path:
    """Write the page; returns its path. Parts that ``run`` lacks are named on the page instead of raising.

    Raises:
        OutputError: the file cannot be written; an earlier page stays as it was.
    """
    parts, own = (
        (_CLIP_CONTENTS, _clips) if run.clips else (_GROUNDING_CONTENTS, _grounding) if run.grounding
        else (_COUNTING_CONTENTS, _counting) if run.counts else (_CONTENTS, _detection)
    )
    body = [
        sections_head.headline(run),
        base_beside.beside(run.base),
        sections_head.results(run),
        *own(run),
        sections_run.course(run),
        sections_head.contract(run),
        sections_run.data(run),
        sections_run.timing(run),
        sections_run.record(run),
    ]
    optional = {"base": run.base is not None, "readouts": not run.clips or looks.has_points(run)}
    contents = [(anchor, title) for anchor, title in parts if optional.get(anchor, True)]
    name = run.choice("experiment") or run.choice("loss") or "run"
    return page.write(path, page.document(f"{name} ({run.status}) - coordvlm", body, contents=contents))


def _detection(run: RunSummary) -> list[page.Markup]:
    return [
        sections_results.pictures(run),
        sections_results.pixel_errors(run),
        sections_results.overlap(run),
        sections_results.agreement(run),
        sections_results.classes(run),
        sections_results.readouts(run),
        sections_results.drops(run),
    ]


def _grounding(run: RunSummary) -> list[page.Markup]:
    return [
        sections_grounding.controls(run),
        sections_results.pictures(run),
        sections_grounding.accuracy(run),
        sections_grounding.failures(run),
        sections_grounding.rejection(run),
        sections_grounding.offset(run),
        sections_results.pixel_errors(run),
        sections_results.readouts(run),
        sections_results.drops(run),
    ]


def _counting(run: RunSummary) -> list[page.Markup]:
    parts = (
        counting.checklist, counting.pixel_errors, counting.regions, counting.buckets, counting.done, counting.counts,
        count_pictures.step_pictures, count_pictures.count_pictures, counting.readouts,
    )
    return [part(run) for part in parts]


def _clips(run: RunSummary) -> list[page.Markup]:
    parts = [foveation.arms, looks.looks, foveation.sheet, foveation.frames, looks.samples]
    return [part(run) for part in (*parts, *([looks.readouts] if looks.has_points(run) else []))]
