"""Truth and predictions as flat arrays: what every detection metric computes on.

Shapes: I images, A annotations, D kept predictions, C categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts.prediction import Prediction
from coordvlm.contracts.sample import GroundTruth

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Truths:
    """Annotations in file order, by index instead of id.

    Args:
        num_images, num_classes: I and C.
        image, category: int64[A], index into ``image_ids`` and ``category_ids``.
        xyxy: float64[A, 4] source px. area: float64[A]. crowd: bool[A].
    """

    num_images: int
    num_classes: int
    image: IntArray
    category: IntArray
    xyxy: FloatArray
    area: FloatArray
    crowd: BoolArray


@dataclass(frozen=True)
class Detections:
    """Kept predictions in image order, then emission order: the order that decides ties.

    Args:
        image: int64[D], index into the truth's ``image_ids``, ascending.
        category: int64[D], index into ``category_ids``; ``-1 - u`` for the u-th distinct description that is no category.
        xyxy: float64[D, 4] source px. score: float64[D].
        emission: int64[D], position among the image's kept records.
    """

    image: IntArray
    category: IntArray
    xyxy: FloatArray
    score: FloatArray
    emission: IntArray

    def __len__(self) -> int:
        return len(self.image)

    def known(self) -> Detections:
        """Without unknown descriptions."""
        keep = self.category >= 0
        return Detections(self.image[keep], self.category[keep], self.xyxy[keep], self.score[keep], self.emission[keep])

    def with_score_one(self) -> Detections:
        """The same boxes as a model without confidences would give them: emission order decides."""
        return replace(self, score=np.ones_like(self.score))


def _positions(values: IntArray, table: IntArray, what: str) -> IntArray:
    """Index of every value in the ascending, unique ``table``."""
    if len(table) > 1 and not np.all(np.diff(table) > 0):
        raise ValueError(f"{what}s of the truth must be ascending and unique")
    index = np.searchsorted(table, values)
    missing = values[(index >= len(table)) | (table[np.minimum(index, len(table) - 1)] != values)] if len(table) else values
    if missing.size:
        raise ValueError(f"annotations refer to an unknown {what}: {np.unique(missing)[:5].tolist()}")
    return index.astype(np.int64)


def index_truth(truth: GroundTruth) -> Truths:
    """Annotations by image and category index; a ``ValueError`` names ids that do not exist."""
    return Truths(
        num_images=len(truth.image_ids),
        num_classes=len(truth.category_ids),
        image=_positions(truth.ann_image_id, truth.image_ids, "image id"),
        category=_positions(truth.ann_category_id, truth.category_ids, "category id"),
        xyxy=np.asarray(truth.ann_xyxy_px, dtype=np.float64).reshape(-1, 4),
        area=np.asarray(truth.ann_area, dtype=np.float64),
        crowd=np.asarray(truth.ann_iscrowd, dtype=np.bool_),
    )


def class_lookup(truth: GroundTruth, casefold: bool) -> dict[str, int]:
    """Description -> class index. Two categories that become one name are a ``ValueError``: their boxes would be mixed up."""
    lookup: dict[str, int] = {}
    for index, name in enumerate(truth.category_names):
        key = normalise(name, casefold)
        if key in lookup:
            raise ValueError(
                f"categories {truth.category_names[lookup[key]]!r} and {name!r} cannot be told apart by description "
                f"(casefold={casefold}); predictions of one would count for the other"
            )
        lookup[key] = index
    return lookup


def normalise(desc: str, casefold: bool) -> str:
    """How a description is compared with category names."""
    return desc.strip().casefold() if casefold else desc.strip()


def flatten(truth: GroundTruth, predictions: Mapping[int, Prediction], *, casefold: bool) -> Detections:
    """Kept records of all images, in image-id order, then emission order.

    Args:
        predictions: image id -> prediction; ids were checked against the truth.
    Raises:
        ValueError: a kept record without four finite coordinates or with a NaN score, which would sort arbitrarily.
    """
    lookup, unknown = class_lookup(truth, casefold), dict[str, int]()
    image: list[int] = []
    category: list[int] = []
    emission: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    scores: list[float] = []
    for position, image_id in enumerate(truth.image_ids.tolist()):
        prediction = predictions.get(image_id)
        for index, record in enumerate(prediction.kept if prediction is not None else ()):
            if record.box_xyxy_px is None:
                raise ValueError(f"image {image_id}: kept record {index} ({record.desc!r}) has no box")
            desc = normalise(record.desc, casefold)
            image.append(position)
            category.append(lookup[desc] if desc in lookup else -1 - unknown.setdefault(desc, len(unknown)))
            emission.append(index)
            boxes.append(record.box_xyxy_px)
            scores.append(record.score)
    detections = Detections(
        np.array(image, dtype=np.int64), np.array(category, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(scores, dtype=np.float64), np.array(emission, dtype=np.int64),
    )
    broken = ~np.isfinite(detections.xyxy).all(1) | np.isnan(detections.score)
    if broken.any():
        first = int(np.flatnonzero(broken)[0])
        raise ValueError(
            f"image {truth.image_ids[detections.image[first]]}: kept record {detections.emission[first]} has box "
            f"{detections.xyxy[first].tolist()} and score {detections.score[first]}; it would sort and match arbitrarily"
        )
    return detections
