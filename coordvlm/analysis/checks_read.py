"""From a data source to views of its splits: from the tables of formats where there are any, so that what is broken is still there.

Shapes: I images, A annotations, P phrases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.analysis.checks_view import Loader, PhraseView, Place, SplitView
from coordvlm.contracts import TARGET, GroundTruth, PhraseTruth, Sample
from coordvlm.data.checks import RULES, Fault, box_faults
from coordvlm.data.detection import BoxSplit
from coordvlm.data.filtered import SomeImages
from coordvlm.data.mixed import JoinedSplit, MixedSplit
from coordvlm.data.phrase_source import PhraseSplit
from coordvlm.data.source import SPLITS, DataSource, Split
from coordvlm.utils.errors import DataError


def view_split(source: DataSource, name: str, *, strict: bool, num_samples: int) -> list[SplitView]:
    """A split of any source; of a mix, a view of each part. What evaluation joins is seen where it stands alone.

    Args:
        strict: a broken target stops training, if it is trained.
        num_samples: samples of a source that makes its images up.
    Raises:
        DataError: the split cannot be read.
    """
    split = source.split(name)
    if isinstance(split, JoinedSplit) and name in SPLITS:
        return []
    if not isinstance(split, MixedSplit | JoinedSplit):
        return [_view(source, split, name, strict and name == "train", num_samples)]
    found = []
    for part in split.parts:
        view = _view(source, part.split, part.split.name, strict and name == "train", num_samples)
        found.append(replace(view, name=f"{part.member}_{part.split.name}", member=part.member))
    return found


def _view(source: DataSource, split: Split, name: str, strict: bool, num_samples: int) -> SplitView:
    whole = split.split if isinstance(split, SomeImages) else split
    if isinstance(whole, BoxSplit):
        return _of_boxes(whole, split.ids, strict)
    if isinstance(whole, PhraseSplit):
        return _of_phrase_table(whole, split.ids, strict)
    if getattr(source, "generated", False):
        picked = np.linspace(0, len(split) - 1, min(len(split), num_samples)).astype(np.int64)
        return _of_samples(split, [split.sample(i, 0) for i in picked.tolist()], source)
    truth = source.truth(name)
    if isinstance(truth, PhraseTruth):
        return _of_phrases(split, truth, source.dropped(name), strict)
    return _of_truth(split, truth, source.dropped(name), strict)


def _of_boxes(split: BoxSplit, ids: NDArray[np.int64], strict: bool) -> SplitView:
    """From the table of a format: what is broken is still in it."""
    table = split.table
    order = np.argsort(table.image_ids, kind="stable")
    chosen = order[np.searchsorted(table.image_ids[order], ids)]
    position = _positions(split, ids)
    spot = np.full(len(table.image_ids) + 1, -1, dtype=np.int64)  # the last one is for annotations of no image
    spot[chosen] = np.arange(len(chosen))
    kept = np.flatnonzero((spot[table.ann_image] >= 0) | (table.ann_image < 0))

    def file(index: int) -> Path | None:
        try:
            return split.image_file(int(position[index]))
        except DataError:
            return None

    def image(index: int) -> Path:
        return split.image_file(int(position[index]))

    return SplitView(
        name=split.name, member="", trains=split.name == "train", total=len(ids), strict=strict, generated=False, image_ids=ids,
        image_wh=table.image_wh[chosen],
        files=[file(i) for i in range(len(chosen))],
        image_place=lambda i: f"{table.image_place(int(chosen[i]))} ({table.image_name(int(chosen[i]))})", image=image,
        category_ids=table.category_ids, category_names=table.category_names, xyxy=table.ann_xyxy[kept],
        ann_image=spot[table.ann_image[kept]], ann_category=table.ann_category_id[kept], crowd=table.ann_iscrowd[kept],
        faults=table.faults[kept], ann_place=lambda a: table.annotation_place(int(kept[a])),
        ann_value=lambda a: table.value(int(kept[a])), rule=lambda a: table.rule(int(kept[a])), left_out=table.counts,
    )


def _of_phrase_table(split: PhraseSplit, ids: NDArray[np.int64], strict: bool) -> SplitView:
    """From the table of a format of phrases: what is broken is still in it."""
    table = split.table
    rows = np.flatnonzero(np.isin(table.ids, ids) | (table.faults > 0))
    used = np.unique(table.image[rows][table.image[rows] >= 0])
    spot = np.full(len(table.image_ids) + 1, -1, dtype=np.int64)  # the last one is for phrases of no image
    spot[used] = np.arange(len(used))
    image = spot[table.image[rows]]
    first = {int(i): int(r) for r, i in zip(rows[::-1].tolist(), image[::-1].tolist(), strict=True)}

    def file(index: int) -> Path | None:
        try:
            found = split.image(int(used[index]))
        except DataError:
            return None
        return found if isinstance(found, Path) else None

    xyxy = np.where(table.negative[rows, None], np.nan, table.xyxy[rows])
    phrases = PhraseView(
        texts=[table.phrases[int(r)] for r in rows], image=image, xyxy=xyxy, place=lambda p: table.place(int(rows[p])),
        negative=table.negative[rows],
    )
    owner = _different_boxes(phrases)
    broken = np.flatnonzero(table.faults[rows] > 0)
    anns = np.concatenate([broken, owner[table.faults[rows[owner]] == 0]])
    return SplitView(
        name=split.name, member="", trains=split.name == "train", total=len(ids), strict=strict, generated=False,
        image_ids=table.image_ids[used], image_wh=table.image_wh[used],
        files=[file(i) for i in range(len(used))],
        image_place=lambda i: table.place(first[i]),
        image=lambda i: split.image(int(used[i])), category_ids=np.ones(1, dtype=np.int64), category_names=(TARGET,), xyxy=xyxy[anns],
        ann_image=image[anns], ann_category=np.ones(len(anns), dtype=np.int64), crowd=np.zeros(len(anns), dtype=bool),
        faults=table.faults[rows[anns]], ann_place=lambda a: table.place(int(rows[anns[a]])),
        ann_value=lambda a: table.value(int(rows[anns[a]])), rule=lambda a: table.rule(int(rows[anns[a]])), left_out=table.counts,
        phrases=phrases,
        embedded={n: (table.file_names[i], table.contents[i]) for n, i in enumerate(used.tolist()) if i in table.contents},
    )


def _where(split: Split, index: int) -> str:
    sample = split.sample(index, 0)
    return str(sample.meta.get("where") or f"{split.name}: sample id {sample.id}")


def _file(split: Split, index: int) -> Path | Image.Image:
    return split.sample(index, 0).image


def _of_truth(split: Split, truth: GroundTruth, left_out: Mapping[str, int], strict: bool) -> SplitView:
    """A source that keeps no table, from its truth."""
    at = _positions(split, truth.image_ids)
    images = [split.sample(int(i), 0).image for i in at]
    return _assemble(
        split, len(split), strict, False, truth.image_ids, truth.image_wh, images, lambda i: _where(split, int(at[i])),
        lambda i: _file(split, int(at[i])), (truth.category_ids, truth.category_names), truth.ann_xyxy_px,
        np.searchsorted(truth.image_ids, truth.ann_image_id), truth.ann_category_id, truth.ann_iscrowd, left_out, None,
    )


def _of_phrases(split: Split, truth: PhraseTruth, left_out: Mapping[str, int], strict: bool) -> SplitView:
    """From the truth of phrases. An image is opened by nobody: the first of its phrases says where it is."""
    at = _positions(split, truth.image_ids)
    images, first, image = np.unique(truth.source_image, return_index=True, return_inverse=True)
    xyxy = np.full((len(at), 4), np.nan)
    xyxy[np.searchsorted(truth.image_ids, truth.ann_image_id)] = truth.ann_xyxy_px
    found = [_file(split, int(at[i])) for i in first]
    phrases = PhraseView(texts=truth.phrases, image=image.astype(np.int64), negative=np.isnan(xyxy).any(axis=1), xyxy=xyxy,
                         place=lambda p: _where(split, int(at[p])))
    owner = _different_boxes(phrases)
    kept = phrases.xyxy[owner]
    return _assemble(
        split, len(split), strict, False, images, truth.image_wh[first], found, lambda i: _where(split, int(at[first[i]])),
        lambda i: _file(split, int(at[first[i]])), (truth.category_ids, truth.category_names), kept, phrases.image[owner],
        np.ones(len(kept), dtype=np.int64), np.zeros(len(kept), dtype=bool), left_out, phrases,
        place=lambda a: phrases.place(int(owner[a])),
    )


def _of_samples(split: Split, samples: Sequence[Sample], source: DataSource) -> SplitView:
    """Some samples of a source that makes its images up."""
    objects = [(i, o) for i, s in enumerate(samples) for o in s.objects if o.box_xyxy_px is not None]
    xyxy = np.asarray([o.box_xyxy_px for _, o in objects], dtype=np.float64).reshape(-1, 4)
    names, phrases = source.class_names, None
    if any(s.phrase is not None for s in samples):
        boxes = np.full((len(samples), 4), np.nan)
        boxes[[i for i, _ in objects]] = xyxy
        phrases = PhraseView(
            texts=[s.phrase or "" for s in samples], image=np.arange(len(samples)), xyxy=boxes, negative=np.isnan(boxes).any(axis=1),
            place=lambda p: f"{split.name}: sample id {samples[p].id}",
        )
        names = (TARGET,)
    number = {name: i for i, name in enumerate(names, start=1)}
    category = np.asarray([number.get(o.desc, 0) for _, o in objects], dtype=np.int64)
    classes = (np.arange(1, len(names) + 1), names)
    return _assemble(
        split, len(split), True, True, np.asarray([s.id for s in samples], dtype=np.int64),
        np.asarray([(s.width, s.height) for s in samples], dtype=np.float64).reshape(-1, 2), [s.image for s in samples],
        lambda i: f"{split.name}: sample id {samples[i].id}", lambda i: samples[i].image, classes, xyxy,
        np.asarray([i for i, _ in objects], dtype=np.int64), category, np.zeros(len(xyxy), dtype=bool), {}, phrases,
    )


def _assemble(
    split: Split, total: int, strict: bool, generated: bool, ids: NDArray[np.int64], wh: NDArray[np.float64],
    images: Sequence[Path | Image.Image], image_place: Place, image: Loader, classes: tuple[NDArray[np.int64], tuple[str, ...]],
    xyxy: NDArray[np.float64], ann_image: NDArray[np.int64], ann_category: NDArray[np.int64], crowd: NDArray[np.bool_],
    left_out: Mapping[str, int], phrases: PhraseView | None, *, place: Place | None = None,
) -> SplitView:
    """A view without a table: the faults are found here."""
    faults = box_faults(xyxy, wh[ann_image]) if len(xyxy) else np.zeros(0, dtype=np.uint8)
    where = place or (lambda a: image_place(int(ann_image[a])))
    return SplitView(
        name=split.name, member="", trains=split.name == "train", total=total, strict=strict, generated=generated, image_ids=ids,
        image_wh=wh,
        files=[i if isinstance(i, Path) else None for i in images], image_place=image_place, image=image, category_ids=classes[0],
        category_names=classes[1], xyxy=xyxy, ann_image=ann_image.astype(np.int64), ann_category=ann_category, crowd=crowd, faults=faults,
        ann_place=where, ann_value=partial(_box, xyxy), rule=lambda a: RULES[Fault(int(faults[a]))],
        left_out={k: n for k, n in left_out.items() if k not in ("clipped", "crowd")}, phrases=phrases,
    )


def _box(xyxy_A4: NDArray[np.float64], at: int) -> list[float]:
    found: list[float] = xyxy_A4[at].tolist()
    return found


def _positions(split: Split, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64: positions in the split of sample ids."""
    order = np.argsort(split.ids, kind="stable")
    return np.asarray(order[np.searchsorted(split.ids[order], ids)], dtype=np.int64)


def _different_boxes(phrases: PhraseView) -> NDArray[np.int64]:
    """int64[A]: the first phrase of each different box of an image."""
    named = np.flatnonzero(~np.isnan(phrases.xyxy).any(axis=1) & (phrases.image >= 0))
    rows = np.column_stack([phrases.image[named].astype(np.float64), phrases.xyxy[named]])
    _, first = np.unique(rows, axis=0, return_index=True)
    return np.asarray(named[np.sort(first)], dtype=np.int64)
