"""Checks of class names and how the boxes spread over them.

Shapes: C categories, A annotations, I images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coordvlm.analysis.checks import CheckSettings, Tally, percent, stated
from coordvlm.analysis.checks_phrases import odd_characters, special_tokens
from coordvlm.analysis.checks_view import SplitView
from coordvlm.reports.audit_data import Example, Finding, Histogram, Level

#: Fewer boxes than this in a training split are hardly learnt. A class this many times rarer than the most frequent one is named.
_RARE, _RATIO = 10, 100.0
#: Images from which on it says something that a class is in nearly all of them.
_ENOUGH = 20
_BARS = 12


def check_classes(view: SplitView, settings: CheckSettings) -> list[Finding]:
    """All checks of the classes of a split; nothing for phrases, whose one class says nothing."""
    if view.phrases is not None:
        return []
    tally = Tally(
        topic="classes", split=view.name, settings=settings, of=len(view.category_names),
        place=lambda i: f"{view.name}: category id {view.category_ids[i]}", value=lambda i: view.category_names[i],
    )
    return [*_names(view, tally), *_use(view, tally), *_usual(view, settings)]


def alike(name: str) -> str:
    """Equal for names that differ in case, spacing, underscores, hyphens or a plural ending only."""
    text = re.sub(r"[\s_\-]+", " ", name.casefold()).strip()
    for ending, single in (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("xes", "x")):
        if text.endswith(ending):
            return text[: -len(ending)] + single
    return text[:-1] if len(text) > 3 and text.endswith("s") and not text.endswith(("ss", "us", "is")) else text


def _names(view: SplitView, tally: Tally) -> list[Finding]:
    names = view.category_names
    by_key: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        by_key.setdefault(alike(name), []).append(i)
    twins = [i for group in by_key.values() for i in group[1:]]
    first = {i: group[0] for group in by_key.values() for i in group[1:]}
    odd = [i for i, name in enumerate(names) if odd_characters(name) or special_tokens(name) or name != name.strip()]
    return [
        tally("alike_names", twins, "two classes should differ in more than case, spacing or a plural", Level.WARN,
              value=lambda i: [names[first[i]], names[i]]),
        tally("odd_names", odd, "a class name should hold no special token, control character or outer space", Level.WARN),
    ]


def _counts(view: SplitView) -> NDArray[np.int64]:
    """int64[C]: boxes of each category, crowds apart."""
    kept = view.ann_category[view.good]
    spot = np.searchsorted(view.category_ids, kept)
    inside = np.minimum(spot, max(len(view.category_ids) - 1, 0))
    known = view.category_ids[inside] == kept if len(view.category_ids) else np.zeros(len(kept), dtype=bool)
    return np.bincount(inside[known], minlength=len(view.category_ids)).astype(np.int64)


def _use(view: SplitView, tally: Tally) -> list[Finding]:
    counts = _counts(view)
    unused = np.flatnonzero(counts == 0)
    used = np.flatnonzero(counts)
    found = []
    if len(used):
        most, least = int(counts.argmax()), int(used[counts[used].argmin()])
        ratio = counts[most] / counts[least]
        pair = f"{view.category_names[most]} {counts[most]:,}, {view.category_names[least]} {counts[least]:,}"
        found.append(Finding(
            "classes", "imbalance", view.name, Level.NOTE if ratio > _RATIO else Level.OK, float(ratio), f"{ratio:.3g} x",
            f"how much more frequent the most frequent class is than the rarest ({pair})",
        ))
    else:
        found.append(stated("classes", "imbalance", view.name, 0, "no boxes", "how much more frequent the most frequent class is"))

    found.append(tally("unused", unused, "classes of the list that no box has", Level.OK if view.generated else Level.NOTE))
    if view.trains and not view.generated:
        rare = used[counts[used] < _RARE]
        found.append(tally("rare", rare, f"fewer than {_RARE} boxes to learn a class from", Level.NOTE,
                           value=lambda i: [view.category_names[i], int(counts[i])]))
    return found


def _usual(view: SplitView, settings: CheckSettings) -> list[Finding]:
    """Images that lack a class nearly all others have: forgotten, or truly without."""
    if len(view.image_ids) < _ENOUGH or view.generated:
        return []
    known = view.ann_image >= 0
    pairs = np.unique(np.stack([view.ann_category[known], view.ann_image[known]], 1), axis=0)
    has_box = np.unique(view.ann_image[known])
    tally = Tally(topic="classes", split=view.name, settings=settings, of=len(view.image_ids), place=view.image_place)
    found = []
    for category, name in zip(view.category_ids.tolist(), view.category_names, strict=True):
        images = pairs[pairs[:, 0] == category, 1]
        share = len(images) / len(view.image_ids)
        if settings.usual_share <= share < 1:
            without = np.setdiff1d(has_box, images)
            rule = f"{percent(share)} of the images have {name!r}; these have other boxes and not this: were they forgotten?"
            details = {"share_with": share, "images": view.image_ids[without].tolist()}
            found.append(tally(f"without_{name}", without, rule, Level.NOTE, details=details))
    return found


def check_classes_between(views: Sequence[SplitView]) -> list[Finding]:
    """Classes that are scored and never taught."""
    train = next((v for v in views if v.trains and v.phrases is None and not v.generated), None)
    found: list[Finding] = []
    if train is None:
        return found
    taught = {name for name, n in zip(train.category_names, _counts(train).tolist(), strict=True) if n}
    for view in views:
        if view.trains or view.phrases is not None:
            continue
        new = [(name, n) for name, n in zip(view.category_names, _counts(view).tolist(), strict=True) if n and name not in taught]
        rule = "classes with boxes that are scored and not one to learn from" if new else "every class that is scored can be learnt"
        found.append(Finding(
            "classes", "never_taught", view.name, Level.WARN if new else Level.OK, len(new), str(len(new)), rule,
            tuple(Example(f"{view.name}: {name}, {n} boxes") for name, n in new[:10]),
        ))
    return found


def class_histogram(view: SplitView) -> Histogram:
    """The most frequent classes, the others together."""
    counts = _counts(view)
    order = np.argsort(-counts, kind="stable")
    shown, rest = order[:_BARS], order[_BARS:]
    labels = [view.category_names[i] for i in shown] + ([f"{len(rest)} others"] if len(rest) else [])
    numbers = counts[shown].tolist() + ([int(counts[rest].sum())] if len(rest) else [])
    return Histogram("Boxes per class", view.name, tuple(labels), tuple(numbers))
