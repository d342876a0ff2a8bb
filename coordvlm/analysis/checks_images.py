"""Checks of image files: there, readable, of the annotated size, upright, and each of them once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coordvlm.analysis.checks import CheckSettings, Tally, stated
from coordvlm.analysis.checks_view import SplitView
from coordvlm.analysis.image_facts import ImageFacts, near_pairs
from coordvlm.reports.audit_data import Finding, Level

_TURNED = (5, 6, 7, 8)


def chosen_images(view: SplitView, settings: CheckSettings) -> NDArray[np.int64]:
    """int64: positions of the images whose pixels are read, ascending; the same ones for the same seed."""
    count = len(view.image_ids)
    if settings.full or count <= settings.num_images:
        return np.arange(count)
    return np.sort(np.random.default_rng(settings.seed).choice(count, settings.num_images, replace=False))


def check_images(view: SplitView, facts: ImageFacts, groups: Sequence[Sequence[int]], settings: CheckSettings) -> list[Finding]:
    """All checks of the images of a split.

    Args:
        groups: positions whose files hold the same bytes.
    """
    count, decoded = len(view.image_ids), len(facts.decoded)
    tally = Tally(topic="images", split=view.name, settings=settings, of=count, place=view.image_place)
    if not any(file is not None for file in view.files) and not facts.missing.any():
        rule = "images are made or held by the annotation file: there are no files to look for"
        held = _twins(view, facts, groups, tally) if view.embedded else []
        return [stated("images", "files", view.name, 0, "none", rule, looked_at=decoded), _unreadable(facts, tally), *held]
    lost = np.asarray([i for i, file in enumerate(view.files) if file is None], dtype=np.int64)
    return [
        tally("missing", np.union1d(np.flatnonzero(facts.missing), lost), "every image file must exist, inside the data's folders",
              Level.FAIL, value=lambda i: str(view.files[i]) if view.files[i] else None),
        _unreadable(facts, tally),
        *_sizes(view, facts, tally),
        _modes(view, facts),
        *_twins(view, facts, groups, tally),
        stated("images", "decoded", view.name, int(facts.readable.sum()), f"{facts.readable.sum():,} of {count:,}",
               "images whose pixels were read; full=true reads all, otherwise num_images of each split"),
    ]


def _unreadable(facts: ImageFacts, tally: Tally) -> Finding:
    rule = "an image must be readable and complete"
    return tally("unreadable", sorted(facts.broken), rule, Level.FAIL, value=lambda i: facts.broken[i])


def _sizes(view: SplitView, facts: ImageFacts, tally: Tally) -> list[Finding]:
    known = facts.stored_wh.all(1)
    declared, turned = view.image_wh.astype(np.int64), facts.stored_wh[:, ::-1]
    exif = np.isin(facts.orientation, _TURNED)
    as_stored = (declared == facts.stored_wh).all(1)
    unlike = np.flatnonzero(known & ~as_stored & ~(exif & (declared == turned).all(1)))
    ignored = np.flatnonzero(known & exif & as_stored & (facts.stored_wh != turned).any(1))
    limit = tally.settings.max_pixels

    def stored(i: int) -> str:
        return "{} x {} px".format(*facts.stored_wh[i])

    return [
        tally("other_size", unlike, "the file must have the annotated size: boxes would be scaled wrongly", Level.FAIL,
              value=lambda i: f"{stored(i)}, annotated {declared[i, 0]} x {declared[i, 1]}"),
        tally("exif", np.flatnonzero(known & (facts.orientation != 1)),
              "images that EXIF turns or mirrors: boxes refer to the displayed frame", Level.NOTE,
              value=lambda i: f"orientation {facts.orientation[i]}"),
        tally("exif_ignored", ignored, "annotated in the stored frame though EXIF turns the image: was it shown upright to the annotator?",
              Level.WARN, value=stored),
        tally("huge", np.flatnonzero(facts.stored_wh.prod(1) > limit), f"images above {limit:,} px (model.max_source_pixels) are refused",
              Level.FAIL, value=stored),
    ]


def _modes(view: SplitView, facts: ImageFacts) -> Finding:
    modes = Counter(mode for mode in facts.mode if mode and mode != "RGB")
    number = modes.total()
    text = ", ".join(f"{mode} {n:,}" for mode, n in modes.most_common(4)) or "all RGB"
    rule = "images that are not RGB are converted: grey, palette, transparency on white"
    return Finding("images", "modes", view.name, Level.NOTE if number else Level.OK, number, text, rule, details=dict(modes))


def _twins(view: SplitView, facts: ImageFacts, groups: Sequence[Sequence[int]], tally: Tally) -> list[Finding]:
    first = {i: group[0] for group in groups for i in group[1:]}
    pairs = near_pairs(facts, facts, bits=tally.settings.near_bits, grey=tally.settings.near_grey)
    near = {b: a for a, b in pairs if a < b and b not in first}
    looks = replace(tally, of=len(facts.decoded))
    return [
        tally("identical", sorted(first), "the same file content under two ids counts twice", Level.WARN,
              value=lambda i: f"as {view.image_place(first[i])}"),
        looks("look_alike", sorted(near), "of the images looked at: nearly the same picture as another one", Level.NOTE,
              value=lambda i: f"as {view.image_place(near[i])}"),
    ]
