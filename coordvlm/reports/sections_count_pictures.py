"""The pictures on the page of a counting run: single steps by their error, counted images, and one count step by step."""

from __future__ import annotations

import base64

from coordvlm.contracts import PointTruth
from coordvlm.reports.count_gif import count_gif
from coordvlm.reports.count_scene import CountScene, choose_steps
from coordvlm.reports.gallery import Scene, choose, gallery, scenes
from coordvlm.reports.page import Markup, missing, picture, section, tag
from coordvlm.reports.sections_counting import any_unmarked
from coordvlm.reports.summary import RunSummary
from coordvlm.utils.errors import ConfigError

_STEP_PICTURES, _COUNT_PICTURES = 6, 4


def step_pictures(run: RunSummary) -> Markup:
    """Single steps with the smallest, middle and largest error."""
    title = "Single steps"
    items = _scenes(run)
    if isinstance(items, str):
        return section("pictures", title, missing(items))
    chosen = choose_steps([s.count for s in items if s.count is not None], _STEP_PICTURES)
    if not any(chosen.values()):
        return section("pictures", title, missing("No single step with something left to point at."))
    parts = []
    for name, group in chosen.items():
        figures = [_step_figure(run, scene, index) for scene, index in group]
        parts += [tag("h3", name.capitalize()), tag("div", figures, class_="gallery") if figures else missing("No step left.")]
    keys = tag(
        "div", tag("span", tag("i", class_="green"), "truth: the object to point at; rings: others that are unmarked"),
        tag("span", tag("i", class_="red"), "prediction"), tag("span", tag("i", style="color:#96a0a4"), "already marked"), class_="legend",
    )
    note = (
        "The clean image, k/N and the category above it; err in px of the source image. Steps are ranked by their error on a side of 384, "
        "at most one per sample in each group."
    )
    return section("pictures", title, keys, *parts, note=note)


def _step_figure(run: RunSummary, scene: CountScene, index: int) -> Markup:
    assert run.load_image is not None, "checked by _scenes"
    words = f"sample {scene.sample_id}"
    error = scene.errors384[index]
    try:
        view = picture(scene.draw_step(run.load_image(scene.sample_id), index), f"{words}, a single step")
    except (OSError, KeyError, ValueError) as problem:
        view = missing(f"The image could not be read: {type(problem).__name__}: {problem}")
    return tag("figure", view, tag("figcaption", tag("b", scene.category), f", {words}", tag("br"), f"error {error:.2f} px of 384"))


def count_pictures(run: RunSummary) -> Markup:
    """Counted images, and one of them step by step."""
    title = "Counted images"
    items = _scenes(run)
    if isinstance(items, str):
        return section("counted", title, missing(items))
    shown = [s for s in items if s.count is not None and s.count.ended]
    if not shown:
        return section("counted", title, missing("The loop was not run, so no image was counted."))
    assert run.load_image is not None, "checked by _scenes"
    note = (
        "Points in the order they were counted, crosses are true objects; circles: green missed, red extra (beyond 5 px of 384 of every "
        "object left). Ranked by the mean of the share of single steps that are right and the F1 of the points."
    )
    pictures = gallery(choose(shown, each=_COUNT_PICTURES), run.load_image)
    return section(
        "counted", title, pictures, tag("h3", "Step by step"), _animated(run, [s.count for s in shown if s.count is not None]),
        note=note,
    )


def _animated(run: RunSummary, counted: list[CountScene]) -> Markup:
    """The sample with the middle number of points, as a GIF of at most half a megabyte."""
    scene = sorted(counted, key=lambda s: (len(s.points_px), s.sample_id))[len(counted) // 2]
    records = {int(p.sample_id): p for p in run.predictions}[scene.sample_id].kept
    p_done = [1 - r.score for r in records if r.point_px is not None]
    try:
        assert run.load_image is not None, "checked by _scenes"
        data = count_gif(
            run.load_image(scene.sample_id), scene.points_px, p_done, category=scene.category, ended=scene.ended, max_frames=24,
            true_px=scene.true_px, size=scene.size, max_side=384, max_bytes=500_000,
        )
    except (OSError, KeyError, ValueError, ConfigError) as problem:
        return missing(f"The steps could not be drawn: {type(problem).__name__}: {problem}")
    source = f"data:image/gif;base64,{base64.b64encode(data).decode('ascii')}"
    view = tag("img", src=source, alt=f"sample {scene.sample_id} counted step by step", loading="lazy")
    return tag("div", tag("figure", view, tag("figcaption", scene.caption())), class_="gallery")


def _scenes(run: RunSummary) -> list[Scene] | str:
    """The samples to draw, or why there are none."""
    if not isinstance(run.truth, PointTruth) or not run.predictions:
        return "No predictions were handed over, so there is nothing to draw."
    if run.load_image is None:
        return "Images cannot be loaded here, so predictions are not drawn."
    return scenes(run.truth, run.predictions, None, any_unmarked=any_unmarked(run))
