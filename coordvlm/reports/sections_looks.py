"""Parts of the page of a run on clips that show clips: where they are looked at, and what was answered."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import ArmAnswer, ClipTruth, Prediction
from coordvlm.metrics.looking import SeenClip
from coordvlm.reports import tables
from coordvlm.reports.look_overlay import look_gif, look_picture, shown_frames
from coordvlm.reports.page import Child, Markup, join, missing, picture, section, table, tag
from coordvlm.reports.summary import RunSummary
from coordvlm.utils.errors import ConfigError

#: Answers on the page.
_SAMPLES = 24
_RIGHT = {True: ("good", "right"), False: ("bad", "wrong")}


def looks(run: RunSummary) -> Markup:
    """Where both passes look, over the frames, and a GIF of each clip."""
    title = "Where it looks"
    found = run.foveation
    if found is None or not found.seen:
        return section("looks", title, missing("Nothing was drawn (decode.pictures and decode.diagnosed say how many clips are)."))
    answers = {int(p.sample_id): p for p in run.predictions}
    figures = [_figure(run, clip, answers.get(clip.clip_id)) for clip in found.seen]
    key = tag("div", tag("span", tag("i", class_="green"), "the patch that holds the true place, where the data know it"), class_="legend")
    note = (
        "Attention of the queries over patches, the mean over layers and heads, which adds up to 1 in each frame. Coarse and fine share "
        "one colour scale per clip; in the moving picture, fine − coarse is blue where fine looks less and red where it looks more."
    )
    if (frames := len(found.seen[0].frames)) > len(shown := shown_frames(frames)):
        note += f" {len(shown)} of {frames} frames are shown side by side; the moving picture has all."
    return section("looks", title, key, tag("div", figures, class_="looks"), note=note)


def _figure(run: RunSummary, clip: SeenClip, prediction: Prediction | None) -> Markup:
    moving: Child = None
    try:
        source = f"data:image/gif;base64,{base64.b64encode(look_gif(clip)).decode('ascii')}"
        moving = tag("img", src=source, alt=f"clip {clip.clip_id} frame by frame: coarse, fine and their difference", loading="lazy")
    except ConfigError as problem:  # a pass that was not evaluated, or a clip too large
        moving = missing(str(problem))
    view = picture(look_picture(clip), f"where clip {clip.clip_id} was looked at")
    return tag("figure", view, moving, tag("figcaption", *_caption(run, clip.clip_id, prediction)))


def _caption(run: RunSummary, clip_id: int, prediction: Prediction | None) -> list[Child]:
    truth = run.truth
    if not isinstance(truth, ClipTruth):
        return [f"clip {clip_id}"]
    at = int(np.searchsorted(truth.image_ids, clip_id))
    asked = tag("b", truth.questions[at] or "(nothing is asked)")
    words: list[Child] = [asked, f" clip {clip_id}", tag("br"), f"true: {_true(truth, clip_id)}"]
    for arm in ("fine", "coarse"):
        answer = None if prediction is None else answer_of(prediction, arm)
        if answer is not None:
            words += [f" · {arm}: ", _answer(truth, clip_id, answer)]
    return words


def _true(truth: ClipTruth, clip_id: int) -> str:
    point = truth.point_of(clip_id)
    return truth.answers[int(np.searchsorted(truth.image_ids, clip_id))] if point is None else f"({point[0]:.0f}, {point[1]:.0f}) px"


def _answer(truth: ClipTruth, clip_id: int, answer: ArmAnswer) -> Markup:
    """What was answered, marked right or wrong; of a point how far it is off."""
    point = truth.point_of(clip_id)
    if point is not None:
        if answer.point_px is None:
            return tag("span", "no point", class_="pill bad")
        off = math.dist(answer.point_px, point)
        return join(f"({answer.point_px[0]:.0f}, {answer.point_px[1]:.0f}) px, ", tag("b", f"{off:.1f} px off"))
    kind, word = _RIGHT[answer.num_correct == answer.num_tokens]
    return join(answer.text or "∅", " ", tag("span", word, class_=f"pill {kind}"))


def point_errors(truth: ClipTruth, predictions: Sequence[Prediction], arm: str) -> NDArray[np.float64]:
    """float64[n], distance of one arm's points, px on a side of 384; NaN where it gave none. Clips answered in words are left out."""
    size = dict(zip(truth.image_ids.tolist(), truth.image_wh.tolist(), strict=True))
    errors = []
    for prediction in predictions:
        clip_id = int(prediction.sample_id)
        answer, point = answer_of(prediction, arm), truth.point_of(clip_id)
        if answer is None or point is None:
            continue
        off = (np.nan, np.nan) if answer.point_px is None else np.subtract(answer.point_px, point) * 384 / size[clip_id]
        errors.append(float(np.hypot(*off)))
    return np.asarray(errors)


def answer_of(prediction: Prediction, arm: str) -> ArmAnswer | None:
    """What one arm answered."""
    return next((a for a in prediction.arms if a.arm == arm), None)


def samples(run: RunSummary) -> Markup:
    """Some answers: truth, fine, coarse and the other ways."""
    title = "Answers"
    truth = run.truth
    if not isinstance(truth, ClipTruth) or not run.predictions:
        return section("samples", title, missing("No answers were handed over."))
    chosen = choose_answers(run.predictions)
    present = [arm for arm in ("fine", "coarse", "auto", "swap", "random") if any(answer_of(p, arm) for p in chosen)]
    rows = []
    for prediction in chosen:
        clip_id = int(prediction.sample_id)
        at = int(np.searchsorted(truth.image_ids, clip_id))
        found = [answer_of(prediction, arm) for arm in present]
        cells = ["–" if answer is None else _answer(truth, clip_id, answer) for answer in found]
        rows.append((clip_id, truth.kinds[at], truth.questions[at] or "–", tag("b", _true(truth, clip_id)), *cells))
    head = ("clip", "kind", "question", "truth", *present)
    note = (
        f"{len(rows)} of {len(run.predictions):,} clips: up to half of them such that fine or coarse alone is right, the others "
        "the first ones."
    )
    return section("samples", title, table(head, rows, text_columns=range(len(head)), class_="wide"), note=note)


def choose_answers(predictions: Sequence[Prediction], most: int = _SAMPLES) -> list[Prediction]:
    """At most ``most``, by id: half of them where one of fine and coarse is right alone, as far as there are, the others the first."""
    ordered = sorted(predictions, key=lambda p: int(p.sample_id))

    def differ(p: Prediction) -> bool:
        right = [a.num_correct == a.num_tokens for arm in ("fine", "coarse") if (a := answer_of(p, arm)) is not None]
        return len(right) == 2 and right[0] != right[1]

    telling = [p for p in ordered if differ(p)][: most // 2]
    taken = {p.sample_id for p in telling}
    others = [p for p in ordered if p.sample_id not in taken]
    return sorted([*telling, *others[: most - len(telling)]], key=lambda p: int(p.sample_id))


def has_points(run: RunSummary) -> bool:
    """Whether some answers are points, so that they can be read off in several ways."""
    return run.evaluation is not None and "px384_median" in run.evaluation.metrics


def readouts(run: RunSummary) -> Markup:
    """Read-outs of the same points."""
    title = "Read-outs"
    if not run.readouts:
        return section("readouts", title, missing("Read-outs were not compared."))
    names = [n for n in ("px384_median", "pck384_5", "pck384_20", "px_median") if any(n in values for values in run.readouts.values())]
    rows = []
    for name, values in run.readouts.items():
        label = join(name, " ", tag("span", "used above", class_="pill")) if name == run.readout else name
        rows.append((label, *(tables.number(n, float(values.get(n, math.nan))) for n in names)))
    note = "The same answers of the arm that is reported, read off their coordinate tokens in several ways, or from the heads."
    return section("readouts", title, table(("read-out", *names), rows), note=note)
