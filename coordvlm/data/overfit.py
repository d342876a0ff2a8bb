"""A source of nothing but the first training batch, for all three splits (``debug=overfit``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import Clip, ClipTruth, GroundTruth, PhraseTruth, PointTruth, Sample
from coordvlm.data.source import SPLITS, DataSource
from coordvlm.utils.errors import ConfigError


class FewSamples:
    """A ``Split`` of given samples."""

    def __init__(self, name: str, samples: Sequence[Sample]) -> None:
        self.name, self._samples = name, list(samples)
        self.ids: NDArray[np.int64] = np.asarray([s.id for s in samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int, epoch: int) -> Sample:
        return self._samples[index]


class FirstBatch:
    """A ``DataSource`` that knows ``samples`` only; the truth is their targets.

    Samples to count that are validated or tested say so (``meta["split"]``): they are asked as held-out ones are, with true marks.

    Args:
        source: where class names and ids come from. samples: training samples with integer ids.
    """

    def __init__(self, source: DataSource, samples: Sequence[Sample]) -> None:
        self._samples = sorted(samples, key=lambda s: int(s.id))
        self._names = source.class_names
        classes = source.truth("val")
        self._is_grounding, self._is_counting = isinstance(classes, PhraseTruth), isinstance(classes, PointTruth)
        self._is_video = isinstance(classes, ClipTruth)
        known = dict(zip(classes.category_ids.tolist(), classes.category_names, strict=True))
        known |= {int(o.category_id): o.desc for s in samples for o in s.objects if o.category_id is not None}
        self._classes = dict(sorted(known.items()))
        self.notes = (f"overfit: the same {len(samples)} training images are trained, validated and tested on",)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._names

    def split(self, name: str) -> FewSamples:
        if name not in SPLITS:
            raise ConfigError(f"no split {name!r}; there are {', '.join(SPLITS)}")
        samples = self._samples
        if name != "train" and self._is_grounding:
            samples = [s for s in samples if s.phrase is not None]
        elif name != "train" and self._is_counting:
            samples = [replace(s, meta={**s.meta, "split": name}) for s in samples]
        return FewSamples("train", samples)

    def truth(self, name: str) -> GroundTruth:
        if self._is_grounding:
            return self._phrases()
        if self._is_counting:
            return self._counts()
        if self._is_video:
            return self._clips()
        objects = [(s, o) for s in self._samples for o in s.objects]
        boxes = np.asarray([o.box_xyxy_px for _, o in objects], dtype=np.float64).reshape(-1, 4)
        return GroundTruth(
            image_ids=np.asarray([s.id for s in self._samples], dtype=np.int64),
            image_wh=np.asarray([(s.width, s.height) for s in self._samples], dtype=np.float64),
            category_ids=np.asarray(list(self._classes), dtype=np.int64),
            category_names=tuple(self._classes.values()),
            ann_ids=np.arange(1, len(objects) + 1, dtype=np.int64),
            ann_image_id=np.asarray([s.id for s, _ in objects], dtype=np.int64),
            ann_category_id=np.asarray([o.category_id for _, o in objects], dtype=np.int64),
            ann_xyxy_px=boxes,
            ann_area=(boxes[:, 2:] - boxes[:, :2]).prod(1),
            ann_iscrowd=np.zeros(len(objects), dtype=np.bool_),
        )

    def _phrases(self) -> PhraseTruth:
        """Of the samples with a phrase; detection samples mixed in are trained only. Each counts as an image of its own."""
        asked = [s for s in self._samples if s.phrase is not None]
        ids = [int(s.id) for s in asked]
        return PhraseTruth.of(
            ids=ids, phrases=[str(s.phrase) for s in asked], source_image=ids,
            image_wh=np.asarray([(s.width, s.height) for s in asked], dtype=np.float64),
            boxes=[s.objects[0].box_xyxy_px if s.objects else None for s in asked],
        )

    def _counts(self) -> PointTruth:
        """Each sample counts as an image of its own."""
        ids = [int(s.id) for s in self._samples]
        return PointTruth.of(
            ids=ids, categories=[str(s.category) for s in self._samples], source_image=ids,
            image_wh=np.asarray([(s.width, s.height) for s in self._samples], dtype=np.float64),
            points=[np.asarray([o.point_px for o in s.objects], dtype=np.float64).reshape(-1, 2) for s in self._samples],
        )

    def _clips(self) -> ClipTruth:
        """Each sample counts as a clip of its own."""
        clips = [s for s in self._samples if isinstance(s, Clip)]
        ids = [int(c.id) for c in clips]
        return ClipTruth.of(
            ids=ids, questions=[c.phrase or "" for c in clips], answers=[c.answer for c in clips], kinds=[c.kind for c in clips],
            source_clip=ids, sizes=[(c.width, c.height) for c in clips], points=[c.point_px for c in clips],
        )

    def dropped(self, name: str) -> Mapping[str, int]:
        return {}

    def digests(self) -> Mapping[str, str]:
        return {"train": self.truth("train").digest()}
