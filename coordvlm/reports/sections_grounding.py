"""The evidence on the page of a grounding run: controls, accuracy over overlap, where it fails, rejection, a constant offset."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from coordvlm.metrics.offset import Offset
from coordvlm.metrics.phrases import ACCURACIES
from coordvlm.reports import plots, tables
from coordvlm.reports.page import Child, Markup, missing, section, table, tag
from coordvlm.reports.summary import RunSummary

_CONTROL_NAMES = {"shuffled": "phrases permuted", "blank": "images blank"}


def controls(run: RunSummary) -> Markup:
    """Acc@0.5 with the wrong phrase and without a picture."""
    title = "Does it read the phrase and the image?"
    found = run.phrases.controls if run.phrases is not None else {}
    if not found:
        return section("controls", title, missing("The controls were not run (controls=true runs them)."))
    alerts = [
        tag("div", tag("strong", "A control failed"), c.sentence, class_="alert bad", role="alert") for c in found.values() if c.ignored
    ]
    rows = []
    for name, c in found.items():
        pill = ("bad", "ignored") if c.ignored else ("good", "read") if c.drop.low > 0 else ("warn", "not shown")
        interval = f"{c.drop.low:.3f} – {c.drop.high:.3f}" if np.isfinite(c.drop.low) else "–"
        rows.append((
            _CONTROL_NAMES[name], f"{c.phrases:,}", f"{c.plain:.3f}", f"{c.controlled.value:.3f}", tag("b", f"{c.drop.value:.3f}"),
            interval, tag("span", pill[1], class_=f"pill {pill[0]}"),
        ))
    head = ("control", "phrases", "Acc@0.5", "with the control", "drop", "95 % interval", "")
    words = [tag("p", c.sentence, class_="lead") for c in found.values() if not c.ignored]
    note = (
        "The same phrases once more: each with another one's phrase, and each with an image of its mean colour. A model that does as well "
        "knows the answer from elsewhere, such as where things usually are. Paired intervals over source images."
    )
    return section("controls", title, alerts, table(head, rows, text_columns=(0, 6)), words, note=note)


def accuracy(run: RunSummary) -> Markup:
    """How good the boxes are: IoU of every phrase with a target, and the share above each threshold."""
    title = "Accuracy over overlap"
    iou = run.evaluation.best_iou if run.evaluation is not None else None
    if iou is None or not len(iou):
        return section("overlap", title, missing("No phrase with a target to measure overlap on."))
    missed = int((iou <= 0).sum())
    bars = plots.histogram(
        iou[iou > 0], np.linspace(0, 1, 41), x_label="IoU of answer and truth", y_label="phrases",
        alt="Histogram of the IoU of each phrase", marks=(0.5,), missed=missed,
    )
    curve = plots.share_over_threshold(
        iou, np.linspace(0, 1, 101), marks=tuple(ACCURACIES.values()), x_label="IoU threshold", y_label="share of phrases",
        alt="Share of phrases whose answer reaches each IoU",
    )
    read = ", ".join(f"{(iou >= t).mean():.3f} at {t:g}" for t in ACCURACIES.values())
    figures = [
        plots.panel("Overlap of the answers", bars, legend={"overlapping": 1, f"no overlap, or no box ({missed:,})": 2},
                    note=f"Median {np.median(iou):.3f}."),
        plots.panel("Accuracy at each threshold", curve, note=f"Acc {read}."),
    ]
    note = f"{len(iou):,} phrases with a target; a threshold is included. An answer that cannot be read, or is “none”, counts as IoU 0."
    return section("overlap", title, tag("div", figures, class_="plots"), note=note)


def failures(run: RunSummary) -> Markup:
    """The failure table, one block per group."""
    title = "Where it fails"
    rows = run.phrases.failures if run.phrases is not None else ()
    if not rows:
        return section("failures", title, missing("No failure table was made."))
    head = ("", "", "phrases", "right", "Acc@0.5", "mean IoU", "“none”", "unparsed")
    cells: list[tuple[Child, ...]] = []
    for group, members in groupby(rows, key=lambda row: row.group):
        for i, r in enumerate(members):
            shares = tables.number("acc_50", r.acc_50), tables.number("iou_mean_all", r.iou_mean)
            counts = f"{r.phrases:,}", f"{r.right:,}", *shares, f"{r.none:,}", f"{r.unparsed:,}"
            cells.append((tag("b", group) if i == 0 else None, r.bucket, *counts))
    note = (
        "Phrases with a target, right at IoU ≥ 0.5; one without a target is right when it is rejected. Buckets of few phrases say "
        "little. A phrase with several of the relation words is in several rows. The same is in failures.csv; every phrase is in "
        "grounding.csv."
    )
    return section("failures", title, table(head, cells, text_columns=(0, 1), class_="wide"), note=note)


def rejection(run: RunSummary) -> Markup:
    """How phrases that name nothing were answered."""
    title = "Phrases that name nothing"
    counts = run.evaluation.counts if run.evaluation is not None else {}
    negatives = counts.get("phrases_without_target", 0)
    if run.evaluation is None or not negatives:
        return section("rejection", title, missing("Every phrase has a target, so rejection was not measured."))
    shown = [r for r in tables.rows(run.evaluation.metrics) if r.name.startswith("reject_")]
    rows = [(r.name, r.shown, r.interval, r.meaning) for r in shown]
    note = (
        f"{negatives:,} of {counts.get('phrases', 0):,} phrases have no target; {counts.get('answered_none', 0):,} of all were answered "
        "by “none”. Phrases without a target enter neither accuracy nor IoU."
    )
    return section("rejection", title, table(("metric", "value", "95 % interval", "meaning"), rows, text_columns=(0, 3)), note=note)


def offset(run: RunSummary) -> Markup:
    """Scale and shift of answered against true coordinates, and the convention that would explain them."""
    title = "A constant offset?"
    found = run.phrases.offset if run.phrases is not None else None
    if found is None:
        return section("offset", title, missing("No offset was estimated."))
    kind = {"named": "bad", "unnamed": "warn"}.get(found.verdict)
    words = tag("div", tag("strong", _HEADS[found.verdict]), found.sentence, class_=f"alert {kind}") if kind else tag(
        "p", found.sentence, class_="lead"
    )
    note = (
        "Robust least squares of answered against true corners, wrong objects left out as outliers, and a comparison with the boxes that "
        "other conventions would give (swapped axes, pixels for thousandths, ignored padding, width and height read as a corner ...)."
    )
    return section("offset", title, words, _lines(found) if found.lines else None, note=note)


_HEADS = {"named": "The boxes are read by another convention than they are written in", "unnamed": "The boxes are off by a constant"}


def _lines(found: Offset) -> Markup:
    rows = []
    for name, line in found.lines.items():
        digits, unit = (2, "px") if name.endswith("_px") else (4, "of the image")
        shift = f"{line.shift:+.{digits}f} ± {line.shift_se:.{digits}f}"
        scale = f"{line.scale:.4f} ± {line.scale_se:.4f}"
        rows.append((name.partition("_")[0], unit, scale, shift, f"{line.spread:.{digits}f}", f"{line.inliers:.1%}"))
    return table(("axis", "shift and spread in", "scale", "shift", "spread", "inliers"), rows, text_columns=(0, 1))
