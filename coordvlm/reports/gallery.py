"""The pictures of a run: which images to show, and each with its true and predicted boxes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import GroundTruth, MatchedPairs, PhraseTruth, PointTruth, Prediction
from coordvlm.coords.boxes import pairwise_iou
from coordvlm.reports.count_scene import CountScene, count_scenes
from coordvlm.reports.overlay import Box, draw_overlay
from coordvlm.reports.page import Markup, join, missing, picture, tag, visible

LoadImage = Callable[[int], Image.Image]


@dataclass(frozen=True)
class Scene:
    """One evaluated image.

    Args:
        true_xyxy_px: float64[T, 4] without crowds. pred_xyxy_px: float64[P, 4], kept records in emission order.
        best_iou: float64[T], best same-class IoU of each true box. pred_iou: float64[P], the same for each prediction.
        f1: of this image at IoU 0.5; NaN when there are no matched pairs to count.
        crowds: number of crowd regions, which are not drawn.
        phrase: what was asked for, in grounding; the first prediction is the answer then.
        count: steps and points, in counting; there are no boxes then, and a name for each true point.
    """

    image_id: int
    size: tuple[float, float]
    prediction: Prediction
    true_names: tuple[str, ...]
    true_xyxy_px: NDArray[np.float64]
    pred_xyxy_px: NDArray[np.float64]
    best_iou: NDArray[np.float64]
    pred_iou: NDArray[np.float64]
    f1: float
    crowds: int
    phrase: str | None = None
    count: CountScene | None = None

    @property
    def mean_iou(self) -> float:
        """Mean best IoU over true boxes; NaN for an image without any."""
        return float(self.best_iou.mean()) if len(self.best_iou) else math.nan

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts from worst to best: mean of F1 and mean best IoU, then the IoU; in grounding and counting how good the answer is."""
        if self.count is not None:
            return (self.count.score, 0.0)
        if self.phrase is not None:
            return (self.answered, 0.0)
        parts = [v for v in (self.f1, self.mean_iou) if math.isfinite(v)]
        return (sum(parts) / len(parts) if parts else 0.0, self.mean_iou if len(self.best_iou) else 0.0)

    @property
    def answered(self) -> float:
        """IoU of the answer to the phrase; for one that names nothing 1 when it was rejected, else 0."""
        if not len(self.true_xyxy_px):
            return float("says_none" in self.prediction.flags)
        return float(self.pred_iou[0]) if len(self.pred_iou) and "says_none" not in self.prediction.flags else 0.0


def scenes(
    truth: GroundTruth, predictions: Sequence[Prediction], pairs: MatchedPairs | None, *, any_unmarked: bool = False
) -> list[Scene]:
    """Every predicted image that the truth knows, in id order. F1 counts the evaluation's own matched pairs.

    Args:
        any_unmarked: see ``count_scene.count_scene``; of counting only.
    """
    if isinstance(truth, PointTruth):
        return _counted(truth, predictions, any_unmarked)
    matched = Counter(pairs.image_id.tolist()) if pairs is not None else None
    names = dict(zip(truth.category_ids.tolist(), truth.category_names, strict=True))
    by_id = {int(p.sample_id): p for p in predictions if _is_int(p.sample_id)}
    order = np.argsort(truth.ann_image_id, kind="stable")
    starts = np.searchsorted(truth.ann_image_id[order], truth.image_ids, side="left")
    ends = np.searchsorted(truth.ann_image_id[order], truth.image_ids, side="right")
    out = []
    for i, image_id in enumerate(truth.image_ids.tolist()):
        if image_id not in by_id:
            continue
        annotations = order[starts[i] : ends[i]]
        crowd = truth.ann_iscrowd[annotations]
        rows = annotations[~crowd]
        prediction = by_id[image_id]
        kept = [r for r in prediction.kept if r.box_xyxy_px is not None]
        true_names = tuple(names[c] for c in truth.ann_category_id[rows].tolist())
        true = truth.ann_xyxy_px[rows].reshape(-1, 4)
        pred = np.asarray([r.box_xyxy_px for r in kept], dtype=np.float64).reshape(-1, 4)
        same = np.asarray([[_same(t, r.desc) for t in true_names] for r in kept], dtype=bool).reshape(len(pred), len(true))
        ious = np.where(same, pairwise_iou(torch.from_numpy(pred), torch.from_numpy(true)).numpy(), 0.0)
        items = len(kept) + len(rows)
        f1 = math.nan if matched is None else 2 * matched[image_id] / items if items else 1.0
        width, height = truth.image_wh[i].tolist()
        out.append(Scene(
            image_id, (width, height), prediction, true_names, true, pred, ious.max(0, initial=0.0), ious.max(1, initial=0.0), f1,
            int(crowd.sum()), truth.phrases[i] if isinstance(truth, PhraseTruth) else None,
        ))
    return out


def _counted(truth: PointTruth, predictions: Sequence[Prediction], any_unmarked: bool) -> list[Scene]:
    by_id, boxes, no = {int(p.sample_id): p for p in predictions}, np.zeros((0, 4)), np.zeros(0)
    return [
        Scene(s.sample_id, s.size, by_id[s.sample_id], (s.category,) * len(s.true_px), boxes, boxes, no, no, math.nan, 0, count=s)
        for s in count_scenes(truth, predictions, any_unmarked=any_unmarked)
    ]


def _same(name: str, desc: str) -> bool:
    return name.strip().casefold() == desc.strip().casefold()


def _is_int(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.removeprefix("-").isdecimal())


def choose(items: Sequence[Scene], *, each: int = 8, seed: int = 0) -> dict[str, list[Scene]]:
    """``worst``, ``best`` and ``random``, without overlap; fewer of each when there are less than three times ``each``.

    Images without true boxes cannot be a best one.
    """
    count = min(each, math.ceil(len(items) / 3))
    ranked = sorted(items, key=lambda s: s.rank)
    worst = ranked[:count]
    rest = ranked[count:]
    best = [s for s in reversed(rest) if len(s.true_names)][:count]
    rest = [s for s in rest if s not in best]
    return {"best": best, "worst": worst, "random": random.Random(seed).sample(rest, min(count, len(rest)))}


def gallery(groups: Mapping[str, Sequence[Scene]], load_image: LoadImage) -> Markup:
    """The chosen images, group by group; a group without images says so."""
    titles = {"best": "Best", "worst": "Worst", "random": "Random"}
    parts = []
    for name, group in groups.items():
        figures = [overlay_figure(scene, load_image) for scene in group]
        parts.append(tag("h3", titles.get(name, name)))
        parts.append(tag("div", figures, class_="gallery") if figures else missing("No image left for this group."))
    return join(parts)


def overlay_figure(scene: Scene, load_image: LoadImage) -> Markup:
    """One image with its boxes and a caption; an image that cannot be read leaves its caption and the reason."""
    try:
        view = picture(overlay_image(scene, load_image), f"image {scene.image_id} with {'boxes' if scene.count is None else 'points'}")
    except (OSError, KeyError, ValueError) as error:
        view = missing(f"The image could not be read: {type(error).__name__}: {error}")
    return tag("figure", view, tag("figcaption", _caption(scene)))


def overlay_image(scene: Scene, load_image: LoadImage) -> Image.Image:
    """The image with its true boxes in green and the predicted ones in red; raises what ``load_image`` raises."""
    if scene.count is not None:
        return scene.count.draw(load_image(scene.image_id))
    names = scene.true_names if scene.phrase is None else [""] * len(scene.true_names)
    truth = [Box(_four(b), name) for b, name in zip(scene.true_xyxy_px, names, strict=True)]
    kept = [r for r in scene.prediction.kept if r.box_xyxy_px is not None]
    predicted = [
        Box(_four(box), f"IoU {iou:.2f}" if scene.phrase is not None else f"{_short(record.desc)} {record.score:.2f} IoU {iou:.2f}")
        for box, record, iou in zip(scene.pred_xyxy_px, kept, scene.pred_iou, strict=True)
    ]
    return draw_overlay(load_image(scene.image_id), truth, predicted, size=scene.size)


def _short(desc: str) -> str:
    """A description that leaves room for its numbers."""
    shown = visible(desc)
    return shown if len(shown) <= 24 else f"{shown[:23]}…"


def _caption(scene: Scene) -> Markup:
    if scene.count is not None:
        return join(tag("b", scene.count.category), f", sample {scene.image_id}", tag("br"), " · ".join(scene.count.facts()))
    if scene.phrase is not None:
        return join(tag("b", f"“{scene.phrase}”"), tag("br"), _phrase_facts(scene))
    name, score, iou, facts = _facts(scene)
    return join(tag("b", name), " · F1 ", tag("b", score) if math.isfinite(scene.f1) else score, f" · {iou}", tag("br"), facts)


def caption_text(scene: Scene) -> str:
    """The caption in one line of plain text."""
    if scene.count is not None:
        return scene.count.caption()
    if scene.phrase is not None:
        return f"“{' '.join(visible(scene.phrase).split())}” · {_phrase_facts(scene)}"
    name, score, iou, facts = _facts(scene)
    return f"{name} · F1 {score} · {iou} · {facts}"


def _facts(scene: Scene) -> tuple[str, str, str, str]:
    facts = [f"{len(scene.true_names)} true", f"{len(scene.pred_xyxy_px)} predicted"]
    dropped = Counter(r.status for r in scene.prediction.records if not r.kept)
    facts += [f"{count} × {status}" for status, count in dropped.most_common()]
    facts += sorted(scene.prediction.flags)
    facts += [f"{scene.crowds} crowd regions not drawn"] if scene.crowds else []
    score = f"{scene.f1:.2f}" if math.isfinite(scene.f1) else "–"
    iou = f"mean best IoU {scene.mean_iou:.2f}" if len(scene.true_names) else "nothing to find"
    return f"image {scene.image_id}", score, iou, " · ".join(facts)


def _phrase_facts(scene: Scene) -> str:
    """``phrase 12 · IoU 0.83``; what was answered instead of a box; boxes beyond the first, dropped records and flags."""
    answer = "answered “none”" if "says_none" in scene.prediction.flags else "no box" if not len(scene.pred_xyxy_px) else ""
    there = [] if len(scene.true_xyxy_px) else ["names nothing here"]
    overlap = [f"IoU {scene.answered:.2f}"] if len(scene.true_xyxy_px) and not answer else []
    extra = len(scene.pred_xyxy_px) - 1
    more = [f"{extra} further box{'es' if extra > 1 else ''}"] if extra > 0 else []
    dropped = Counter(r.status for r in scene.prediction.records if not r.kept)
    more += [f"{count} × {status}" for status, count in dropped.most_common()]
    return " · ".join([f"phrase {scene.image_id}", *there, *overlap, *filter(None, [answer]), *more,
                       *sorted(scene.prediction.flags - {"says_none"})])


def _four(box: NDArray[np.float64]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box.tolist()
    return (x1, y1, x2, y2)
