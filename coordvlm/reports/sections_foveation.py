"""Parts of the page of a run on clips that hold its numbers: ways of looking side by side, attention and queries, what frames add."""

from __future__ import annotations

import math

import numpy as np

from coordvlm.contracts import ClipTruth, Interval
from coordvlm.metrics.looking import FOCUS_PATCHES, ArmLooks, FoveationFindings
from coordvlm.reports import plots, plots_foveation, tables
from coordvlm.reports.foveation_names import ARM_WORDS
from coordvlm.reports.page import Child, Markup, fold, join, missing, section, table, tag
from coordvlm.reports.sections_looks import point_errors
from coordvlm.reports.summary import RunSummary

_CONTROLS = ("swap", "random", "no_image", "no_text")
_COLOUR = {"fine": 1, "coarse": 2, "auto": 3, "swap": 4, "random": 5}
_MATCHED, _UNMATCHED = "ratio_matched", "ratio_unmatched"
#: Why the quotient of losses says nothing.
UNMATCHED_WHY = (
    "is not evidence: the coarse pass was not trained with the fine pass's weight, so its loss is higher for having been trained less, "
    "whether or not looking pays. Train both with equal weight (module.coarse_weight=1), or a coarse pass by itself for as many steps."
)
MATCHED_WHY = "both passes were trained with the same weight, so the quotient of their losses compares looking with not looking."
#: px of 384 that the curve of points reaches, and its marks.
_REACH, _MARKS = 100.0, (5.0, 20.0)
#: More rows of layers and heads are folded.
_SHEET = 24


def _metric(run: RunSummary, name: str) -> Interval | None:
    return None if run.evaluation is None else run.evaluation.metrics.get(name)


def _shown(run: RunSummary, name: str, *, interval: bool = False) -> Child:
    item = _metric(run, name)
    if item is None:
        return "–"
    words = tag("b", tables.number(name, float(item.value)))
    if not interval or not (math.isfinite(item.low) and math.isfinite(item.high)):
        return words
    return join(words, " ", tag("span", f"{_short(name, item.low)} – {_short(name, item.high)}", class_="note"))


def _short(name: str, value: float) -> str:
    return f"{value:.1f}" if tables.in_pixels(name) else f"{value:.3f}"


def arms(run: RunSummary) -> Markup:
    """Every way of looking beside its controls, and the ratio under its right name."""
    title = "Ways of looking"
    asked = ("loss", "pck384_20")  # tokens of points that only heads are trained on have no loss
    present = [arm for arm in ARM_WORDS if any(_metric(run, f"{name}_{arm}") is not None for name in asked)]
    if not present:
        return section("arms", title, missing("No way of looking was evaluated."))
    columns = [("acc", "answers right", True), ("token_acc", "tokens right", False), ("loss", "nats per token", False)]
    columns += [("px384_median", "median error, px of 384", True), ("pck384_20", "within 20 px", False)]
    columns = [c for c in columns if any(_metric(run, f"{c[0]}_{arm}") is not None for arm in present)]
    rows = []
    for arm in present:
        name = tag("b", arm) if arm in ("coarse", "fine") else arm
        pill = tag("span", "control", class_="pill") if arm in _CONTROLS else None
        words = ARM_WORDS[arm].removesuffix(" (control)")
        rows.append((join(name, " ", pill), words, *(_shown(run, f"{m}_{arm}", interval=wide) for m, _, wide in columns)))
    head = ("", "what it is", *(words for _, words, _ in columns))
    note = (
        "The same weights and the same clips, read in different ways. That a model looks where it should takes two things: fine is better "
        "than coarse, and the controls swap and random lose it. An answer is right when each of its tokens is the likeliest."
    )
    return section("arms", title, table(head, rows, text_columns=(0, 1), class_="wide"), ratio(run), _near(run), note=note)


def ratio(run: RunSummary) -> Child:
    """The quotient of the passes' losses: as a finding where it is matched, struck out where it is not."""
    matched, unmatched = _metric(run, _MATCHED), _metric(run, _UNMATCHED)
    if matched is not None:
        words = join(tag("b", f"{_MATCHED} {matched.value:.4f}"), _range(matched), ": ", MATCHED_WHY)
        return tag("p", words, class_="lead")
    if unmatched is not None:
        words = join(tag("s", f"{_UNMATCHED} {unmatched.value:.4f}"), " ", UNMATCHED_WHY)
        return tag("div", words, class_="alert warn", role="note")
    return missing(
        "No ratio of losses: only one of the passes was evaluated, the fine pass was not trained, or points are read by heads alone."
    )


def _range(item: Interval) -> str:
    return f" (95 %: {item.low:.4f} – {item.high:.4f})" if math.isfinite(item.low) and math.isfinite(item.high) else ""


def _near(run: RunSummary) -> Child:
    """Curves of how near points come; nothing where answers are words."""
    if not isinstance(run.truth, ClipTruth) or not len(run.truth.ann_ids) or not run.predictions:
        return None
    errors = {arm: found for arm in _COLOUR if len(found := point_errors(run.truth, run.predictions, arm))}
    if not errors:
        return None
    alt = "Share of points within a distance of the truth, by way of looking"
    svg = plots_foveation.within(errors, _REACH, colours=_COLOUR, marks=_MARKS, alt=alt)
    legend = {arm: _COLOUR[arm] for arm in errors}
    return tag("div", plots.panel("How near points come", svg, legend=legend, note="No point counts as never near."), class_="plots")


def sheet(run: RunSummary) -> Markup:
    """How narrow every head looks, and what queries do."""
    title = "Attention and queries"
    found = run.foveation
    if found is None:
        return section("sheet", title, missing("Looking was not diagnosed (decode.diagnosed says on how many clips it is)."))
    sheets = [
        tag("div", tag("h3", f"{arm}: entropy / ln N, layers down, heads across"), plots_foveation.entropy_sheet(
            found.arms[arm].entropy, label=f"entropy of {arm} by layer and head"))
        for arm in ("coarse", "fine") if arm in found.arms
    ]  # fmt: skip
    every = _every_head(found)
    many = sum(a.entropy.size for a in found.arms.values())
    note = (
        f"On {found.clips} clips, {found.grid[0]} × {found.grid[1]} patches, from the path that answers. Entropy is divided by ln N: 1 is "
        f"uniform, 0 a single patch. Focus: mass on the {FOCUS_PATCHES} best patches over their share of all. Wander: how far the centre "
        "of mass moves from its mean, in sides of the frame. Hit: the best patch holds the true place; by chance it does in "
        f"{next(iter(found.arms.values())).chance:.1%} of frames."
    )
    return section(
        "sheet", title, tag("h3", "Queries, by way of looking"), _queries(found), tag("div", sheets, class_="columns"),
        fold(f"Every layer and head: {many} rows", every) if many > _SHEET else every, note=note,
    )


#: Facts about queries, in the order of the table, and what they say.
_FACTS = {
    "std": ("standard deviation over frames", "0: every frame of every clip gets the same query"),
    "rms": ("size", "root mean square"),
    "cos_frames": ("cosine between frames of a clip", ""),
    "cos_clips": ("cosine between clips", "near 1 the plan does not depend on the clip"),
    "cos_static": ("cosine to the coarse query", ""),
    "opposite": ("opposite query moves", "change of what is seen, relative to its size; 0: the query is not read"),
    "orthogonal": ("orthogonal query moves", "the same for a query at a right angle, equally long"),
}


def _queries(found: FoveationFindings) -> Markup:
    shown = _ordered(found)
    rows: list[tuple[Child, ...]] = [
        (words, *(_two(looked.queries.get(name, math.nan)) for _, looked in shown), meaning) for name, (words, meaning) in _FACTS.items()
    ]
    rows.append(("mean entropy / ln N", *(_two(float(looked.entropy.mean())) for _, looked in shown), "1: uniform"))
    best = "of all layers and heads: the best patch holds the true place; of so many heads one is good by chance"
    rows.append(("best hit rate of a head", *(_best_hit(looked) for _, looked in shown), best))
    cosine = "" if math.isnan(found.feature_cosine) else f"What coarse and fine saw of a frame has a cosine of {found.feature_cosine:.3f}."
    sheet_of = table(("", *(arm for arm, _ in shown), "meaning"), rows, text_columns=(0, len(shown) + 1), class_="wide")
    return join(sheet_of, tag("p", cosine, class_="note") if cosine else None)


def _best_hit(looked: ArmLooks) -> str:
    if not looked.knows_places:
        return "–"
    return f"{np.nanmax(looked.place.hit):.0%}"


def _every_head(found: FoveationFindings) -> Markup:
    head = ("", "layer", "head", "entropy", "largest weight", "focus", "centre x", "centre y", "wander", "hit", "mass there", "distance")
    rows = []
    for arm, looked in _ordered(found):
        for layer, number in np.ndindex(looked.entropy.shape):
            at = layer, number
            values = (looked.entropy[at], looked.peak[at], looked.focus[at], *looked.centre[at], looked.wander[at])
            place = (looked.place.hit[at], looked.place.mass[at], looked.place.distance[at])
            rows.append((arm, layer, number, *(_two(float(v)) for v in (*values, *place))))
    return table(head, rows, class_="wide")


def _two(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _ordered(found: FoveationFindings) -> list[tuple[str, ArmLooks]]:
    return [(arm, found.arms[arm]) for arm in ARM_WORDS if arm in found.arms]


def frames(run: RunSummary) -> Markup:
    """The loss when the answer is asked for after fewer frames."""
    title = "What each frame adds"
    found = run.foveation
    kinds = (("frame_loss", "nats per token", "Loss of the answer"), ("frame_error", "px of 384", "Error of the point, by its heads"),
             ("frame_latent", "mean square", "Reconstruction of the frame"))  # fmt: skip
    panels = []
    for name, unit, words in kinds:
        lines = {arm: getattr(looked, name) for arm, looked in (_ordered(found) if found is not None else []) if len(getattr(looked, name))}
        if lines:
            svg = plots_foveation.over_frames(lines, colours=_COLOUR, y_label=unit, alt=f"{words} over frames")
            panels.append(plots.panel(words, svg, legend={arm: _COLOUR[arm] for arm in lines}))
    if not panels:
        return section("frames", title, missing("Losses per frame were not measured (decode.diagnosed)."))
    note = (
        "The true answer asked for after frame t: later frames are no part of the sequence. The model was trained to answer after the "
        "last one."
    )
    return section("frames", title, tag("div", panels, class_="plots"), note=note)
