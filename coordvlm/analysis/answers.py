"""What predictions.jsonl says beside the metrics: pixel errors, how well each image went, and its boxes to draw.

Shapes: I images, Q matched pairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import ClipTruth, GroundTruth, MatchedPairs, PhraseTruth, PointTruth
from coordvlm.contracts.prediction import KEPT
from coordvlm.metrics.foveation import POINT_RADII, ArmColumns
from coordvlm.metrics.pixels import euclidean
from coordvlm.metrics.point_outcomes import steps_of
from coordvlm.metrics.records import line_to_prediction
from coordvlm.reports.gallery import Scene, scenes
from coordvlm.utils.errors import DataError

FloatArray = NDArray[np.float64]
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Answers:
    """A run's answers, condensed.

    Args:
        image_ids: int64[I], ascending. score: float64[I] in [0, 1], mean of the image's F1 at IoU 0.5 and of its boxes' matched IoU;
            an image without true boxes scores its F1, 1 when nothing was predicted. In counting ``CountScene.score``;
            of a clip 1 where its words are right as a whole, or the share of ``POINT_RADII`` that its point is within.
        px_error: float64[2Q], Euclidean corner errors of matched boxes in source px; in counting those of single steps, and
            of clips those of points, on a side of 384.
    """

    image_ids: NDArray[np.int64]
    score: FloatArray
    px_error: FloatArray


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of predictions.jsonl.

    Raises:
        DataError: a line that is no JSON mapping; names file and line.
    """
    lines = []
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                lines.append(_line(text, f"{path}:{number}"))
    except OSError as error:
        raise DataError(f"predictions cannot be read: {error}", where=path) from error
    return lines


def _line(text: bytes, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise DataError(f"must be JSON: {error}", where=where) from error
    if not isinstance(line, dict) or "id" not in line:
        raise DataError("must be a mapping with an id", where=where)
    return line


def condense(lines: Sequence[Line], *, where: object, any_unmarked: bool = False, arm: str = "fine") -> Answers:
    """Errors and scores of every image.

    Args:
        any_unmarked: as the counting metric has it. arm: of clips, the one that is reported.
    Raises:
        DataError: a line lacks a field, or its matches point nowhere.
    """
    if lines and "counted" in lines[0]:
        return _condense_counts(lines, where, any_unmarked)
    if lines and "source_clip" in lines[0]:
        return _condense_clips(lines, where, arm)
    ids, scores, errors = [], [], []
    for line in lines:
        try:
            kept = [r for r in line["records"] if r["status"] in KEPT]
            truth = {t["ann_id"]: t["box"] for t in line["truth"] if not t["iscrowd"]}
            matches = line["matches"]
            errors += [(kept[m["pred_index"]]["box"], truth[m["ann_id"]]) for m in matches]
            overlap = sum(m["iou"] for m in matches)
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(f"must hold records, truth and matches that fit: {error!r}", where=f"{where}, image {line['id']}") from error
        items = len(kept) + len(truth)
        f1 = 2 * len(matches) / items if items else 1.0
        ids.append(int(line["id"]))
        scores.append((f1 + overlap / len(truth)) / 2 if truth else f1)
    boxes = np.asarray(errors, dtype=np.float64).reshape(-1, 2, 4)
    order = np.argsort(ids)
    error_px = euclidean((boxes[:, 0] - boxes[:, 1]).reshape(-1, 2))
    return Answers(np.asarray(ids, dtype=np.int64)[order], np.asarray(scores, dtype=np.float64)[order], error_px)


def _condense_counts(lines: Sequence[Line], where: object, any_unmarked: bool) -> Answers:
    try:
        truth = _points_of(lines)
        predictions = {int(line["id"]): line_to_prediction(line) for line in lines}
        found = scenes(truth, list(predictions.values()), None, any_unmarked=any_unmarked)
        steps = steps_of(truth, predictions, any_unmarked=any_unmarked)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"must hold asked steps, points and truth that fit: {error!r}", where=where) from error
    score = np.asarray([s.rank[0] for s in found], dtype=np.float64)
    return Answers(truth.image_ids, score, steps.error384[steps.has_target])


def _condense_clips(lines: Sequence[Line], where: object, arm: str) -> Answers:
    try:
        truth = _clips_of(lines)
        found = ArmColumns(truth, {int(line["id"]): line_to_prediction(line) for line in lines}, arm)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"must hold arms and truth that fit: {error!r}", where=where) from error
    near = np.mean([found.error384 <= radius for radius in POINT_RADII], axis=0)
    return Answers(truth.image_ids, np.where(found.asked, near, found.right), found.error384[np.isfinite(found.error384)])


def truth_of(lines: Iterable[Line]) -> GroundTruth:
    """The truth as the predictions carry it: boxes, names and sizes. Areas are the boxes' own, so it is not for COCO's numbers.

    Lines of phrases give a ``PhraseTruth``, lines of counting a ``PointTruth``, those of clips a ``ClipTruth``.
    """
    lines = sorted(lines, key=lambda line: int(line["id"]))
    if lines and "counted" in lines[0]:
        return _points_of(lines)
    if lines and "source_clip" in lines[0]:
        return _clips_of(lines)
    if lines and "phrase" in lines[0]:
        return _phrases_of(lines)
    names = tuple(sorted({t["category"] for line in lines for t in line["truth"]}))
    number = {name: i for i, name in enumerate(names, 1)}
    owned = [(int(line["id"]), t) for line in lines for t in line["truth"]]
    boxes = np.asarray([t["box"] for _, t in owned], dtype=np.float64).reshape(-1, 4)
    return GroundTruth(
        image_ids=np.asarray([int(line["id"]) for line in lines], dtype=np.int64),
        image_wh=np.asarray([line["size"] for line in lines], dtype=np.float64).reshape(-1, 2),
        category_ids=np.arange(1, len(names) + 1),
        category_names=names,
        ann_ids=np.asarray([t["ann_id"] for _, t in owned], dtype=np.int64),
        ann_image_id=np.asarray([i for i, _ in owned], dtype=np.int64),
        ann_category_id=np.asarray([number[t["category"]] for _, t in owned], dtype=np.int64),
        ann_xyxy_px=boxes,
        ann_area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        ann_iscrowd=np.asarray([t["iscrowd"] for _, t in owned], dtype=np.bool_),
    )


def _phrases_of(lines: Sequence[Line]) -> PhraseTruth:
    return PhraseTruth.of(
        ids=[int(line["id"]) for line in lines], phrases=[str(line["phrase"]) for line in lines],
        source_image=[int(line["source_image"]) for line in lines], image_wh=np.asarray([line["size"] for line in lines], dtype=np.float64),
        boxes=[line["truth"][0]["box"] if line["truth"] else None for line in lines],
    )


def _points_of(lines: Sequence[Line]) -> PointTruth:
    return PointTruth.of(
        ids=[int(line["id"]) for line in lines], categories=[str(line["counted"]) for line in lines],
        source_image=[int(line["source_image"]) for line in lines], image_wh=np.asarray([line["size"] for line in lines], dtype=np.float64),
        points=[np.asarray([t["box"][:2] for t in line["truth"]], dtype=np.float64).reshape(-1, 2) for line in lines],
    )


def _clips_of(lines: Sequence[Line]) -> ClipTruth:
    return ClipTruth.of(
        ids=[int(line["id"]) for line in lines], questions=[str(line["question"]) for line in lines],
        answers=[str(line["answer"]) for line in lines], kinds=[str(line["kind"]) for line in lines],
        source_clip=[int(line["source_clip"]) for line in lines], sizes=[(line["size"][0], line["size"][1]) for line in lines],
        points=[(line["truth"][0]["box"][0], line["truth"][0]["box"][1]) if line["truth"] else None for line in lines],
    )


def scenes_of(lines: Sequence[Line], *, any_unmarked: bool = False) -> dict[int, Scene]:
    """The images of these lines as the gallery draws them. any_unmarked: as the counting metric has it."""
    truth = truth_of(lines)
    predictions = [line_to_prediction(line) for line in lines]
    found = [(int(line["id"]), m) for line in lines for m in line["matches"]]
    empty = np.zeros((len(found), 4))
    pairs = MatchedPairs(
        np.asarray([i for i, _ in found], dtype=np.int64), np.asarray([m["pred_index"] for _, m in found], dtype=np.int64),
        np.asarray([m["ann_id"] for _, m in found], dtype=np.int64), np.asarray([m["iou"] for _, m in found], dtype=np.float64),
        empty, empty,
    )
    return {scene.image_id: scene for scene in scenes(truth, predictions, pairs, any_unmarked=any_unmarked)}


def most_disputed(scores: Mapping[str, Sequence[Answers]], count: int) -> list[tuple[int, float, dict[str, float]]]:
    """The images on which groups differ most: (id, gap, group -> mean score over seeds), the largest gap first.

    The gap is between the best and the worst group's mean, less one standard error over seeds of their difference, so that an
    image on which single runs are erratic does not look like one on which recipes disagree.
    """
    means = {name: np.mean([a.score for a in runs], axis=0) for name, runs in scores.items()}
    errors = {name: np.var([a.score for a in runs], axis=0, ddof=1) / len(runs) if len(runs) > 1 else np.zeros_like(means[name])
              for name, runs in scores.items()}
    mean, error = np.stack(list(means.values())), np.stack(list(errors.values()))
    best, worst = mean.argmax(0), mean.argmin(0)
    column = np.arange(mean.shape[1])
    gap = mean[best, column] - mean[worst, column] - np.sqrt(error[best, column] + error[worst, column])
    ids = next(iter(scores.values()))[0].image_ids
    order = [i for i in np.lexsort((ids, -gap))[:count] if gap[i] > 0]
    return [(int(ids[i]), float(gap[i]), {name: float(m[i]) for name, m in means.items()}) for i in order]


