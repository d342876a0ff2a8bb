"""The evidence on the page of a counting run: checklist, pixel errors, where and when they happen, the end, counts, read-outs."""

from __future__ import annotations

import math
from collections import Counter
from itertools import groupby

import numpy as np

from coordvlm.contracts import PointTruth
from coordvlm.metrics.checklist import FAIL, NOT_MEASURED, PASS
from coordvlm.metrics.counting_tables import REGIONS, WITHIN, DoneRow, ErrorRow
from coordvlm.metrics.point_outcomes import SAYS_DONE, Steps, steps_of
from coordvlm.reports import plots, plots_counting, tables
from coordvlm.reports.page import Child, Markup, join, missing, section, table, tag
from coordvlm.reports.summary import RunSummary

_PILLS = {PASS: "good", FAIL: "bad", NOT_MEASURED: "warn"}
_KINDS = {"end": "everything is marked (k = N)", "last": "one is left (k = N − 1)", "early": "two or more are left"}
_GROUPS = {"all": "all", "objects": "objects there are", "marked": "objects marked (k)", "left": "objects left", "category": "category"}
#: Rows of the table by bucket that are shown of a group: data may have hundreds of categories.
_MOST_ROWS = 25


def checklist(run: RunSummary) -> Markup:
    """What the run was to reach, with its numbers."""
    title = "Checklist"
    if run.counting is None:
        return section("checklist", title, missing("No checklist was made."))
    rows = [
        (c.name, c.asks, c.found, tag("span", c.status, class_=f"pill {_PILLS[c.status]}")) for c in run.counting.checks
    ]
    total = Counter(c.status for c in run.counting.checks)
    words = ", ".join(f"{total[status]} {name}" for status, name in ((PASS, "passed"), (FAIL, "failed"), (NOT_MEASURED, "not measured")))
    note = "Pixels on a side of 384, of single steps with true marks. What was not measured does not count as passed."
    return section("checklist", title, tag("p", f"{words}.", class_="lead"),
                   table(("item", "asks", "found", ""), rows, text_columns=(0, 1, 2, 3), class_="wide"), note=note)


def pixel_errors(run: RunSummary) -> Markup:
    """Distance of answer and object: fine bins, both axes against each other, the four ranges with the shares they should reach."""
    title = "Pixel error"
    steps = _steps(run)
    if steps is None or not steps.has_target.any():
        return section("pixels", title, missing("No single step with something left to point at, so there is no error to show."))
    at = steps.has_target
    error, xy = steps.error384[at], steps.error384_xy[at]
    limit = float(min(max(np.percentile(error, 99), 12.0), max(60.0, 2 * np.median(error))))  # half of the errors are always seen
    beyond = int((error > limit).sum())
    hidden = f" {beyond:,} of {len(error):,} answers lie beyond {limit:.0f} px." if beyond else ""
    bars = plots.histogram(
        error, np.linspace(0, limit, 49), x_label="px on a side of 384", y_label="answers", alt="Histogram of the point error",
        marks=(2, 5, 10),
    )
    bias = xy.mean(0)
    plane = plots_counting.error_plane(xy, limit, circle=WITHIN, alt="Signed error in x against y")
    figures = [
        plots.panel("Distance", bars, note=f"Dashed: 2, 5 and 10 px.{hidden}"),
        plots.panel("x against y", plane, note=f"Dashed: {WITHIN:g} px. Mean {bias[0]:+.2f} px in x, {bias[1]:+.2f} px in y."),
    ]
    note = (
        "Distance of the answered point and its object in single steps with true marks, both sides of the image scaled to 384 px"
        + (", to the unmarked object nearest to the answer." if any_unmarked(run) else ", to the next object in order.")
    )
    return section("pixels", title, tag("div", figures, class_="plots"), _ranges(run), note=note)


def _ranges(run: RunSummary) -> Child:
    if run.counting is None:
        return None
    rows = []
    for r in run.counting.histogram:
        wanted = ", ".join(f"{tier} {share:.0%}" for tier, share in r.wanted.items())
        rows.append((r.label, f"{r.steps:,}", f"{r.share:.1%}", f"{r.share_x:.1%}", f"{r.share_y:.1%}", f"{r.within:.1%}", wanted or "–"))
    head = ("px", "answers", "share", "x only", "y only", "up to here", "to be reached up to here")
    return join(tag("h3", "By range"), table(head, rows, text_columns=(0, 6)))


def regions(run: RunSummary) -> Markup:
    """Errors by the object's place in the image, three by three."""
    title = "Error by region"
    found = {row.bucket: row for row in _errors(run) if row.group == "region"}
    if not found:
        return section("regions", title, missing("No single step with something left to point at."))
    cells: list[tuple[list[Child], float]] = []
    for name in REGIONS:
        row = found.get(name)
        if row is None:
            cells.append((["no step"], math.nan))
            continue
        lines: list[Child] = [tag("b", f"{row.within_5:.0%}"), f"median {row.median:.1f} px", f"{row.steps:,} steps"]
        cells.append((lines, 1 - row.within_5))
    note = f"By where the object lies: share of answers within {WITHIN:g} px, median error. The darker, the more answers are off."
    return section("regions", title, plots_counting.heat_table(cells, 3, label="Error by region of the image"), note=note)


def buckets(run: RunSummary) -> Markup:
    """Errors by how many objects there are, are marked and are left, and by category."""
    title = "Error by what was asked"
    rows = [row for row in _errors(run) if row.group in _GROUPS]
    if not rows:
        return section("buckets", title, missing("No single step with something left to point at."))
    head = ("", "", "steps", "≤ 5 px", "≤ 10 px", "> 15 px", "median", "mean", "95 %", "on any unmarked", "bias x", "bias y")
    cells: list[tuple[Child, ...]] = []
    hidden = 0
    for group, members in groupby(rows, key=lambda row: row.group):
        listed = list(members)
        hidden += max(0, len(listed) - _MOST_ROWS)
        for i, r in enumerate(sorted(listed, key=lambda r: r.within_5)[:_MOST_ROWS] if len(listed) > _MOST_ROWS else listed):
            shares = (f"{v:.1%}" for v in (r.within_5, r.within_10, r.above_15))
            sizes = (f"{v:.2f}" for v in (r.median, r.mean, r.p95))
            bias = (f"{v:+.2f}" for v in (r.bias_x, r.bias_y))
            name = tag("b", _GROUPS[group]) if i == 0 else None
            cells.append((name, r.bucket, f"{r.steps:,}", *shares, *sizes, f"{r.on_unmarked:.1%}", *bias))
    note = (
        f"Px on a side of 384. “On any unmarked”: the answer lies within {WITHIN:g} px of some unmarked object of the category, be it the "
        "right one or not. Buckets of few steps say little."
    )
    more = missing(f"{hidden} categories that did better are not listed.") if hidden else None
    return section("buckets", title, table(head, cells, text_columns=(0, 1), class_="wide"), more, note=note)


def done(run: RunSummary) -> Markup:
    """Whether the end is seen."""
    title = "Is it done?"
    rows = run.counting.done if run.counting is not None else ()
    if not rows:
        taught = run.evaluation is None or not run.evaluation.counts.get("done_not_taught")
        why = "No single step was asked." if taught else "The run never learnt whether all is marked (sequence.mode=regression)."
        return section("done", title, missing(why))
    head = ("", "steps", "said done", "said more", "right", "mean p_done")
    cells = [_done_row(r) for r in rows]
    steps = _steps(run)
    figure: Child = None
    if steps is not None:
        kinds = {"end": steps.left == 0, "last": steps.left == 1, "early": steps.left >= 2}
        series = {_KINDS[name]: steps.done[inside] for name, inside in kinds.items() if inside.any()}
        svg = plots_counting.probabilities(series, mark=SAYS_DONE, alt="Distribution of the probability that everything is marked")
        figure = tag("div", plots.panel("p_done", svg, legend={name: i for i, name in enumerate(series, 1)}), class_="plots")
    note = f"An answer says done above {SAYS_DONE:g}. Right is to say it where everything is marked, and not to say it before."
    return section("done", title, table(head, cells), figure, note=note)


def _done_row(row: DoneRow) -> tuple[Child, ...]:
    numbers = f"{row.steps:,}", f"{row.said_done:,}", f"{row.said_more:,}"
    return (_KINDS[row.kind], *numbers, tag("b", f"{row.accuracy:.1%}"), f"{row.mean_probability:.3f}")


def counts(run: RunSummary) -> Markup:
    """Counted against true numbers, and how the loop ended."""
    title = "Counts"
    found = run.counting
    if found is None or not found.counts:
        return section("counts", title, missing("The loop was not run (decode.loop=true runs it in the test)."))
    head = ("true number", "samples", "mean error", "bias", "exact", "ended by itself", "F1 of the points")
    rows = [
        (r.bucket, f"{r.samples:,}", f"{r.mae:.2f}", f"{r.bias:+.2f}", f"{r.exact:.1%}", f"{r.finished:.1%}",
         "–" if math.isnan(r.loc_f1) else f"{r.loc_f1:.3f}")
        for r in found.counts
    ]
    svg = plots_counting.counted_against_true(found.count_true, found.count_found, alt="Counted against true numbers")
    everything = found.counts[0]
    said = f"Bias {everything.bias:+.2f} over all samples; above the diagonal is too many. The larger a dot, the more samples lie there."
    ends = Counter(flag.replace("_", " ") for p in run.predictions for flag in p.flags)
    status = Counter(r.status for p in run.predictions for r in p.records)
    facts = "; ".join(f"{n:,} × {name}" for name, n in sorted(ends.items()))
    points = ", ".join(f"{n:,} {name}" for name, n in sorted(status.items()))
    note = (
        "Mark, ask for the next point, mark it, until the answer is done. A point on an object: within 5 px of 384, one to one. "
        f"How counts ended: {facts or 'not known'}. Points: {points or 'none'} (a repeated one lies on a mark and is not counted)."
    )
    figure = tag("div", plots.panel("Counted against true", svg, note=said), class_="plots")
    return section("counts", title, figure, table(head, rows), note=note)


def readouts(run: RunSummary) -> Markup:
    """Read-outs of the same steps."""
    title = "Read-outs"
    if not run.readouts:
        return section("readouts", title, missing("Read-outs were not compared."))
    names = tables.readout_columns(run.readouts)
    rows = []
    for name, values in run.readouts.items():
        label = join(name, " ", tag("span", "used above", class_="pill")) if name == run.readout else name
        rows.append((label, *(tables.number(n, float(values.get(n, math.nan))) for n in names)))
    note = "The same single steps read by each head that the loss trains; the loop is run by the one used above."
    return section("readouts", title, table(("read-out", *names), rows, class_="wide"), note=note)


def _errors(run: RunSummary) -> tuple[ErrorRow, ...]:
    return run.counting.errors if run.counting is not None else ()


def any_unmarked(run: RunSummary) -> bool:
    """Whether an answer was measured to the unmarked object nearest to it."""
    return run.evaluation is not None and bool(run.evaluation.counts.get("measured_to_any_unmarked", 0))


def _steps(run: RunSummary) -> Steps | None:
    if not isinstance(run.truth, PointTruth) or not run.predictions:
        return None
    return steps_of(run.truth, {int(p.sample_id): p for p in run.predictions}, any_unmarked=any_unmarked(run))
