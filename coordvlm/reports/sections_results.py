"""The evidence on the run page: errors in pixels, overlap, precision and recall, agreement, classes, read-outs, pictures, drops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts.prediction import DROP_REASONS, KEPT
from coordvlm.reports import plots, tables
from coordvlm.reports.floor import floor_of, floor_span, floor_words
from coordvlm.reports.gallery import choose, gallery, scenes
from coordvlm.reports.page import Child, Markup, fold, join, missing, section, table, tag
from coordvlm.reports.summary import RunSummary

BUCKETS = ((0.0, 2.0), (2.0, 5.0), (5.0, 10.0), (10.0, math.inf))
_TIERS = (("minimum", 8.0, 0.90, 6.0), ("target", 5.0, 0.90, 4.0), ("stretch", 5.0, 0.95, 3.0))
_CLASS_LIMIT = 30


def pixel_errors(run: RunSummary) -> Markup:
    """Corner errors of matched boxes: fine bins, the four ranges, both directions."""
    title = "Pixel error"
    errors = run.evaluation.px_error if run.evaluation is not None else None
    if errors is None or not np.isfinite(errors).any():
        return section("pixels", title, missing("No matched boxes, so there is no corner error to show."))
    assert run.evaluation is not None, "errors come from an evaluation"
    finite = errors[np.isfinite(errors)]
    xy = run.evaluation.px_error_xy
    limit = float(min(max(np.percentile(finite, 99), 12.0), 60.0))
    edges = np.linspace(0, limit, 49)
    beyond = int((finite > limit).sum())
    found = _found(run)
    note = (
        "Distance of predicted and true corners (top-left and bottom-right) in source pixels, over class-aware pairs matched at IoU ≥ 0.5"
        f"{found}. Boxes that were missed have no distance and are not in here; pck_all_* counts them."
    )
    rows = [(name, *cells) for name, cells in _buckets(finite, xy)]
    known = floor_of(run.truth, run.contract) if run.truth is not None and run.contract is not None else None
    svg = plots.histogram(
        finite, edges, x_label="px", y_label="corners", alt="Histogram of the corner error", marks=(2, 5, 10), floor=floor_span(known),
        dotted=() if known is None else (known.half_patch,),
    )
    shade = "" if known is None or floor_span(known) is None else f" {floor_words(known)}"
    hidden = f" {beyond:,} of {len(finite):,} corners lie beyond {limit:.0f} px." if beyond else ""
    figures = [plots.panel("Corner distance", svg, note=f"Dashed: 2, 5 and 10 px.{hidden}{shade}")]
    if xy is not None and len(xy):
        clean = xy[np.isfinite(xy).all(1)]
        reach = float(min(max(np.percentile(np.abs(clean), 98.5), 4.0), 60.0)) if len(clean) else 4.0
        bias = clean.mean(0) if len(clean) else np.zeros(2)
        svg = plots.signed_histograms(
            {"x": clean[:, 0], "y": clean[:, 1]}, reach, x_label="predicted − true, px", alt="Histograms of the signed error in x and y"
        )
        words = f"Mean {bias[0]:+.2f} px in x, {bias[1]:+.2f} px in y; a convention that is off shows as a shift."
        figures.append(plots.panel("Signed error by axis", svg, legend={"x": 1, "y": 2}, note=words))
    return section(
        "pixels", title, tag("div", figures, class_="plots"),
        tag("div", tag("div", tag("h3", "By range"), table(("px", "corners", "share", "x only", "y only"), rows)),
            tag("div", tag("h3", "Tiers"), _tiers(finite)), class_="columns"), note=note,
    )


def _found(run: RunSummary) -> str:
    evaluation = run.evaluation
    if evaluation is None or evaluation.pairs is None or evaluation.best_iou is None:
        return ""
    return f": {len(evaluation.pairs.iou):,} pairs for {len(evaluation.best_iou):,} true boxes"


def _buckets(errors: NDArray[np.float64], xy: NDArray[np.float64] | None) -> list[tuple[str, tuple[str, ...]]]:
    def inside(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.bool_]:
        return (values <= high) & ((values > low) | (low == 0))

    out = []
    for low, high in BUCKETS:
        name = f"> {low:.0f}" if math.isinf(high) else f"{low:.0f} – {high:.0f}"
        count = int(inside(errors, low, high).sum())
        axes = ["–", "–"]
        if xy is not None and len(xy):
            axes = [f"{inside(np.abs(xy[:, i]), low, high).mean():.1%}" for i in (0, 1)]
        out.append((name, (f"{count:,}", f"{count / len(errors):.1%}", *axes)))
    return out


def _tiers(errors: NDArray[np.float64]) -> Markup:
    mean = float(errors.mean())
    rows = []
    for name, reach, share, below in _TIERS:
        within = float((errors <= reach).mean())
        met = within >= share and mean < below
        rows.append((name, f"{share:.0%} ≤ {reach:.0f} px, mean < {below:.0f} px", f"{within:.1%}, mean {mean:.2f} px",
                     tag("span", "met" if met else "missed", class_=f"pill {'good' if met else 'bad'}")))
    return table(("tier", "asks", "found", ""), rows, text_columns=(0, 1, 2, 3))


def overlap(run: RunSummary) -> Markup:
    """IoU histogram and precision over recall."""
    figures: list[Child] = []
    evaluation = run.evaluation
    if evaluation is not None and evaluation.best_iou is not None and len(evaluation.best_iou):
        iou = evaluation.best_iou
        missed = int((iou <= 0).sum())
        svg = plots.histogram(iou[iou > 0], np.linspace(0, 1, 41), x_label="best same-class IoU of a true box", y_label="true boxes",
                              alt="Histogram of the best IoU of each true box", marks=(0.5,), missed=missed)
        note = f"Median {np.median(iou):.3f}; {(iou >= 0.5).mean():.1%} reach 0.5, {(iou >= 0.9).mean():.1%} reach 0.9."
        figures.append(plots.panel("Overlap of true boxes", svg, legend={"overlapped": 1, f"no overlap at all ({missed:,})": 2}, note=note))
    else:
        figures.append(missing("No true boxes to measure overlap on."))
    lines = {} if evaluation is None else {k: np.asarray(v) for k, v in evaluation.pr_curve.items() if len(v) and np.isfinite(v).any()}
    if lines:
        assert evaluation is not None, "curves come from an evaluation"
        legend = {f"IoU {name}": i for i, name in enumerate(lines, 1)}
        best = evaluation.best_threshold
        threshold = f"F1 at IoU 0.5 is highest at score ≥ {best:.3f}." if math.isfinite(best) else None
        svg = plots.precision_recall(lines, alt="Precision over recall")
        figures.append(plots.panel("Precision and recall, mean over classes", svg, legend=legend, note=threshold))
    else:
        figures.append(missing("No precision-recall curve."))
    return section("overlap", "Overlap and ranking", tag("div", figures, class_="plots"))


def agreement(run: RunSummary) -> Markup:
    """Predicted against true normalised coordinate, one panel per axis."""
    title = "Predicted against true coordinates"
    pairs = run.evaluation.pairs if run.evaluation is not None else None
    if pairs is None or not len(pairs.iou) or run.truth is None:
        return section("agreement", title, missing("No matched boxes to compare."))
    index = np.searchsorted(run.truth.image_ids, pairs.image_id)
    extent = np.tile(run.truth.image_wh[index], 2)
    true, predicted = pairs.true_xyxy_px / extent, pairs.pred_xyxy_px / extent
    figures = []
    for axis, name in enumerate(("x1", "y1", "x2", "y2")):
        svg = plots.agreement(true[:, axis], predicted[:, axis], x_label="true", y_label="predicted", alt=f"Predicted against true {name}")
        bias = float((predicted[:, axis] - true[:, axis]).mean())
        figures.append(plots.panel(name, svg, note=f"mean difference {bias:+.4f}"))
    note = (
        f"{len(true):,} pairs matched at IoU ≥ 0.5, as fractions of the image. Matching hides boxes that are far off: "
        "see the overlap histogram above for those."
    )
    return section("agreement", title, tag("div", figures, class_="plots four"), note=note)


def pictures(run: RunSummary) -> Markup:
    """Best, worst and random images with their boxes."""
    title = "Pictures"
    if run.truth is None or not run.predictions:
        return section("pictures", title, missing("No predictions were handed over, so there is nothing to draw."))
    if run.load_image is None:
        return section("pictures", title, missing("Images cannot be loaded here, so predictions are not drawn."))
    items = scenes(run.truth, run.predictions, run.evaluation.pairs if run.evaluation is not None else None)
    if not items:
        return section("pictures", title, missing("None of the predictions belongs to an image of the truth."))
    keys = tag("div", tag("span", tag("i", class_="green"), "truth"),
               tag("span", tag("i", class_="red"), "prediction" + ("" if run.grounding else ": description, score, best same-class IoU")),
               class_="legend")
    note = (
        f"From {len(items):,} phrases, ranked by the IoU of their answers (a phrase that names nothing by whether it was rejected); the "
        "random ones are drawn with a fixed seed from the rest. Small images are enlarged without smoothing."
    ) if run.grounding else (
        f"From {len(items):,} images, ranked by the mean of the image's F1 (IoU ≥ 0.5) and the mean best IoU of its true boxes; the "
        "random ones are drawn with a fixed seed from the rest. Small images are enlarged without smoothing."
    )
    return section("pictures", title, keys, gallery(choose(items), run.load_image), note=note)


def drops(run: RunSummary) -> Markup:
    """What the parser kept and dropped, and flags of whole answers."""
    title = "What the parser dropped"
    counts = run.evaluation.counts if run.evaluation is not None else {}
    every = fold("All counts of the evaluation", table(("count", "value"), [(k, f"{v:,}") for k, v in counts.items()])) if counts else None
    if not run.predictions:
        return section("drops", title, missing("No predictions were handed over."), every)
    status = Counter(r.status for p in run.predictions for r in p.records)
    total = sum(status.values())
    known = [*KEPT, *DROP_REASONS]
    names = sorted(status, key=lambda s: (known.index(s) if s in known else len(known), s))
    rows = [(s, "kept" if s in KEPT else "dropped", f"{status[s]:,}", f"{status[s] / total:.2%}") for s in names]
    flags = Counter(f for p in run.predictions for f in p.flags)
    flag_rows = [(f, f"{n:,}", f"{n / len(run.predictions):.2%}") for f, n in sorted(flags.items())]
    records = table(("status", "", "records", "share"), rows, text_columns=(0, 1)) if rows else missing("Not one record.")
    answers = table(("flag", "answers", "share"), flag_rows) if flag_rows else missing("No answer was cut off, empty or strayed.")
    parts = [tag("div", tag("h3", "Records"), records), tag("div", tag("h3", "Answers"), answers)]
    note = (
        f"{total:,} records in {len(run.predictions):,} answers. A dropped record never takes its neighbours with it; "
        f"{'a phrase' if run.grounding else 'an image'} without any stays in every mean."
    )
    return section("drops", title, tag("div", parts, class_="columns"), every, note=note)


def classes(run: RunSummary) -> Markup:
    """AP per class, best first; undefined ones last."""
    title = "Classes"
    per_class = run.evaluation.per_class if run.evaluation is not None else {}
    if not per_class:
        return section("classes", title, missing("No per-class numbers."))

    def cell(values: Mapping[str, float], name: str) -> str:
        value = float(values.get(name, math.nan))
        return f"{value:,.0f}" if name == "num_true" and math.isfinite(value) else tables.number(name, value)

    order = sorted(per_class, key=lambda c: (-v if math.isfinite(v := per_class[c].get("AP", math.nan)) else math.inf, c))
    rows = [(c, *(cell(per_class[c], n) for n in ("AP", "AP50", "num_true"))) for c in order]
    head = ("class", "AP", "AP50", "true boxes")
    more = fold(f"{len(rows) - _CLASS_LIMIT} more", table(head, rows[_CLASS_LIMIT:])) if len(rows) > _CLASS_LIMIT else None
    note = f"{len(rows)} classes by AP; a class without true boxes has none."
    return section("classes", title, table(head, rows[:_CLASS_LIMIT]), more, note=note)


def readouts(run: RunSummary) -> Markup:
    """Three ways to read a number off the same distribution."""
    title = "Read-outs"
    if not run.readouts:
        return section("readouts", title, missing("Read-outs were not compared."))
    names = tables.readout_columns(run.readouts)
    chosen = run.readout
    rows = []
    for name, values in run.readouts.items():
        label = join(name, " ", tag("span", "used above", class_="pill")) if name == chosen else name
        rows.append((label, *(tables.number(n, float(values.get(n, math.nan))) for n in names)))
    note = (
        "One decode, read three ways: the token itself, the mean over all bins, the mean near the mode. The token fed back is the "
        "same, so only boxes differ."
    )
    return section("readouts", title, table(("read-out", *names), rows), note=note)
