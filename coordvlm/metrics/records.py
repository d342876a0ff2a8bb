"""What is written of an evaluation: metrics.json, and predictions.jsonl with one line per image, readable back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from coordvlm.contracts.clip import ClipTruth
from coordvlm.contracts.evaluation import Evaluation, MatchedPairs
from coordvlm.contracts.prediction import Alternative, ArmAnswer, Asked, Prediction, Record, SlotReadout
from coordvlm.contracts.sample import GroundTruth, PointTruth


def _plain(value: float) -> float | None:
    """JSON has no NaN; undefined is null."""
    return float(value) if math.isfinite(value) else None


def evaluation_to_json(
    evaluation: Evaluation, *, split: str, protocol: str, timing: Mapping[str, float], selected_on: str | None = None
) -> dict[str, Any]:
    """The content of metrics.json; strict JSON, undefined values are null.

    Args:
        protocol: ``protocol_hash``.
        timing: seconds of the run's stages.
        selected_on: the data on which the checkpoint was chosen.
    """
    metrics = {
        name: {"value": _plain(m.value), "low": _plain(m.low), "high": _plain(m.high)} for name, m in evaluation.metrics.items()
    }
    return {
        "split": split,
        "protocol": protocol,
        "selected_on": selected_on,
        "metrics": metrics,
        "per_class": {name: {k: _plain(v) for k, v in row.items()} for name, row in evaluation.per_class.items()},
        "best_threshold": _plain(evaluation.best_threshold),
        "counts": dict(evaluation.counts),
        "timing": {name: _plain(value) for name, value in timing.items()},
    }


class TruthIndex:
    """Truth and matches by image, so that writing a line does not search the whole split.

    Args:
        pairs: of the same evaluation; None when it made none.
    """

    def __init__(self, truth: GroundTruth, pairs: MatchedPairs | None = None) -> None:
        self._truth, self._pairs = truth, pairs
        self._names = dict(zip(truth.category_ids.tolist(), truth.category_names, strict=True))
        self._annotations = _rows_by_value(truth.ann_image_id)
        self._matches = _rows_by_value(pairs.image_id) if pairs is not None else {}

    def truth(self, image_id: int | str) -> list[dict[str, Any]]:
        """The image's annotations, crowds included, in file order."""
        t = self._truth
        return [
            {
                "ann_id": int(t.ann_ids[a]), "category": self._names[int(t.ann_category_id[a])], "box": t.ann_xyxy_px[a].tolist(),
                "iscrowd": bool(t.ann_iscrowd[a]),
            }
            for a in self._annotations.get(image_id, ())
        ]

    def matches(self, image_id: int | str) -> list[dict[str, Any]]:
        """The image's pairs at IoU >= 0.5; ``pred_index`` counts kept records in emission order."""
        if self._pairs is None:
            return []
        p = self._pairs
        return [
            {"pred_index": int(p.pred_index[q]), "ann_id": int(p.ann_id[q]), "iou": float(p.iou[q])}
            for q in self._matches.get(image_id, ())
        ]


def _rows_by_value(values: np.ndarray) -> dict[int | str, list[int]]:
    rows: dict[int | str, list[int]] = {}
    for row, value in enumerate(values.tolist()):
        rows.setdefault(value, []).append(row)
    return rows


def prediction_to_line(prediction: Prediction, index: TruthIndex, *, prompt: str = "", sha1: str | None = None) -> dict[str, Any]:
    """One line of predictions.jsonl (strict JSON).

    Args:
        prompt: the text the model was asked. sha1: of the image file, when the caller knows it.
    """
    line = {
        "id": prediction.sample_id,
        "sha1": sha1,
        "size": list(prediction.size),
        "prompt": prompt,
        "raw_text": prediction.raw_text,
        "token_ids": list(prediction.token_ids),
        "flags": sorted(prediction.flags),
        "timing": {name: _plain(value) for name, value in prediction.timing.items()},
        "records": [_record_to_json(record) for record in prediction.records],
        "truth": index.truth(prediction.sample_id),
        "matches": index.matches(prediction.sample_id),
    }
    alternatives = {"alternatives": [_alternative_to_json(a) for a in prediction.alternatives]} if prediction.alternatives else {}
    asked = {"asked": [_asked_to_json(a) for a in prediction.asked]} if prediction.asked else {}
    return line | alternatives | asked | ({"arms": [_arm_to_json(a) for a in prediction.arms]} if prediction.arms else {})


def count_fields(truth: PointTruth) -> dict[int, dict[str, Any]]:
    """Sample id -> what a line of counting says beside: ``counted`` (the category) and ``source_image``."""
    rows = zip(truth.image_ids.tolist(), truth.counted, truth.source_image.tolist(), strict=True)
    return {sample_id: {"counted": category, "source_image": source} for sample_id, category, source in rows}


def clip_fields(truth: ClipTruth) -> dict[int, dict[str, Any]]:
    """Clip id -> what a line of a clip says beside: ``question``, ``answer`` (in words; "" for a point), ``kind`` and ``source_clip``."""
    columns = zip(truth.image_ids.tolist(), truth.questions, truth.answers, truth.kinds, truth.source_clip.tolist(), strict=True)
    names = ("question", "answer", "kind", "source_clip")
    return {clip_id: dict(zip(names, values, strict=True)) for clip_id, *values in columns}


def _arm_to_json(answer: ArmAnswer) -> dict[str, Any]:
    point = None if answer.point_px is None else [_plain(v) for v in answer.point_px]
    return {
        "arm": answer.arm, "text": answer.text, "point": point, "nll": _plain(answer.nll), "num_tokens": answer.num_tokens,
        "num_correct": answer.num_correct, "finished": answer.finished,
    }


def _asked_to_json(asked: Asked) -> dict[str, Any]:
    """A single step; the target is the first of ``unmarked`` only where points are taken in order, so it is written by itself."""
    target = None if asked.target_px is None else list(asked.target_px)
    unmarked = asked.unmarked_px.reshape(-1, 2).tolist()
    point = [_plain(v) for v in asked.point_px]
    return {"k": asked.k, "num": asked.num, "target": target, "unmarked": unmarked, "point": point, "done": _plain(asked.done)}


def _alternative_to_json(answer: Alternative) -> dict[str, Any]:
    box = None if answer.box_xyxy_px is None else [_plain(v) for v in answer.box_xyxy_px]
    return {"box": box, "score": _plain(answer.score), "says_none": answer.says_none}


def _record_to_json(record: Record) -> dict[str, Any]:
    return {
        "desc": record.desc,
        "status": record.status,
        "score": _plain(record.score),
        "score_parts": {name: _plain(value) for name, value in record.score_parts.items()},
        "box": None if record.box_xyxy_px is None else [_plain(v) for v in record.box_xyxy_px],
        "point": None if record.point_px is None else [_plain(v) for v in record.point_px],
        "slots": [
            {key: value if key == "bin" else _plain(value) for key, value in asdict(slot).items()} for slot in record.slots
        ],
        "token_span": list(record.token_span),
    }


def line_to_prediction(line: Mapping[str, Any]) -> Prediction:
    """The inverse of ``prediction_to_line``; null becomes NaN. A missing field is a ``KeyError``, except ``alternatives``, ``asked``
    and ``arms``."""
    return Prediction(
        sample_id=line["id"],
        size=(line["size"][0], line["size"][1]),
        records=tuple(_record_from_json(record) for record in line["records"]),
        raw_text=line["raw_text"],
        token_ids=tuple(line["token_ids"]),
        flags=frozenset(line["flags"]),
        timing=dict(zip(line["timing"], _floats(line["timing"].values()), strict=True)),
        alternatives=tuple(_alternative_from_json(a) for a in line.get("alternatives", ())),
        asked=tuple(_asked_from_json(a) for a in line.get("asked", ())),
        arms=tuple(_arm_from_json(a) for a in line.get("arms", ())),
    )


def _arm_from_json(data: Mapping[str, Any]) -> ArmAnswer:
    point = None if data["point"] is None else tuple(_floats(data["point"]))
    return ArmAnswer(
        data["arm"], data["text"], point, next(_floats([data["nll"]])), data["num_tokens"], data["num_correct"],  # type: ignore[arg-type]
        data["finished"],
    )


def _asked_from_json(data: Mapping[str, Any]) -> Asked:
    target = None if data["target"] is None else tuple(_floats(data["target"]))
    unmarked = np.asarray(data["unmarked"], dtype=np.float64).reshape(-1, 2)
    point, done = tuple(_floats(data["point"])), next(_floats([data["done"]]))
    return Asked(data["k"], data["num"], target, unmarked, point, done)  # type: ignore[arg-type]


def _alternative_from_json(data: Mapping[str, Any]) -> Alternative:
    box = None if data["box"] is None else tuple(_floats(data["box"]))
    return Alternative(box, next(_floats([data["score"]])), data["says_none"])  # type: ignore[arg-type]


def _record_from_json(data: Mapping[str, Any]) -> Record:
    box, point = (None if data[name] is None else tuple(_floats(data[name])) for name in ("box", "point"))
    return Record(
        desc=data["desc"],
        box_xyxy_px=box,  # type: ignore[arg-type]
        score=next(_floats([data["score"]])),
        status=data["status"],
        score_parts=dict(zip(data["score_parts"], _floats(data["score_parts"].values()), strict=True)),
        slots=tuple(SlotReadout(slot["bin"], *_floats(slot[k] for k in ("argmax", "expectation", "local"))) for slot in data["slots"]),
        token_span=(data["token_span"][0], data["token_span"][1]),
        point_px=point,  # type: ignore[arg-type]
    )


def _floats(values: Any) -> Iterator[float]:
    return (float("nan") if value is None else float(value) for value in values)
