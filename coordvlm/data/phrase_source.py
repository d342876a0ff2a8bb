"""What every source of phrases shares: which phrases are trained and asked, which are refused, and the untouched truth.

A format reads its files into a ``PhraseTable`` per split; everything after that is here.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import TARGET, Object, PhraseTruth, Sample
from coordvlm.data.checks import clip_boxes, count_faults, is_clipped
from coordvlm.data.detection import broken_images
from coordvlm.data.image_keys import coco_image_id
from coordvlm.data.named_splits import NamedSplits, inside
from coordvlm.data.phrase_records import existing
from coordvlm.data.phrase_table import PhraseTable
from coordvlm.utils.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PhraseChoice:
    """Which phrases of a split count; a format adds where they are.

    Args:
        image_ids: only phrases on these images (COCO ids where all files are named by one, else positions in the file from 1).
        num_images: then only those on the first so many images, num_phrases: then only the first so many; both in file order.
    """

    image_ids: Sequence[int] | None = None
    num_images: int | None = None
    num_phrases: int | None = None


class PhraseSource(NamedSplits["PhraseSplit"]):
    """A ``DataSource`` of phrases, each with one box or none; the base of every format.

    Training is strict: the first broken phrase of ``train`` raises (``on_error=raise``) or broken ones are left out and counted
    (``skip``). In every other split a box that can be read but not learnt (zero area, out of frame ...) stays in ``truth`` and is
    counted; what cannot be read at all always raises there. Images are checked when they are opened, or by ``check_images``.

    Args:
        root: folder that relative paths start from. An image must lie inside it or the split's image folder, also after
            following links.
        on_error: ``raise`` or ``skip``.
        test: the split that ``test`` stands for; None: the one of that name, or ``val`` where there is none.
    """

    samples = "phrases"

    def use(self, tables: Mapping[str, tuple[PhraseTable, PhraseChoice, Path]]) -> None:
        """Take a table, a choice of phrases and an image folder for each split.

        Raises:
            ConfigError: ``test`` names no split, or another one where there is one of that name.
            DataError: see ``PhraseSplit``.
        """
        self.check_test(tables)
        for name, (table, choice, folder) in tables.items():
            split = PhraseSplit(name, self.root, folder, table, choice, evaluated=name != "train", lenient=self.is_lenient(name))
            self._splits[name] = split
            self.notes += table.notes
            if none := split.num_negatives:
                self.notes += (f"{name}: {none} of {len(split)} phrases name nothing in their image",)
        self.note_test(tables)

    @property
    def class_names(self) -> tuple[str, ...]:
        return (TARGET,)

    def truth(self, name: str) -> PhraseTruth:
        return self.split(name).truth()

    def dropped(self, name: str) -> Mapping[str, int]:
        """By reason of ``checks.Fault``; also ``clipped`` (kept) and what the format's reader counts."""
        return self.split(name).dropped

    def digests(self) -> Mapping[str, str]:
        """Over phrases, boxes and sizes; image files are not read."""
        return {name: split.truth().digest() for name, split in self._splits.items()}

    def check_images(self, name: str, *, max_pixels: int) -> list[DataError]:
        """Open every image of a split completely, once; what is wrong with them, in order."""
        split = self.split(name)
        return broken_images(split, np.unique(split.image_positions(), return_index=True)[1].tolist(), max_pixels=max_pixels)


class PhraseSplit:
    """A ``Split`` of a ``PhraseTable``.

    Raises:
        DataError: a broken phrase that counts, unless lenient; a phrase whose truth cannot be read, in what is evaluated; nothing left.
    """

    def __init__(
        self, name: str, root: Path, folder: Path, table: PhraseTable, choice: PhraseChoice, *, evaluated: bool, lenient: bool
    ) -> None:
        self._name, self._folder, self.table = name, folder, table
        self._inside = (root.resolve(), folder.resolve())
        kept = ~table.unreadable if evaluated else table.faults == 0
        rows = _chosen(f"data.source.splits.{name}", table, choice, kept, skipping=lenient)
        broken = rows[~kept[rows]]
        if broken.size and not lenient:
            advice = "without which its truth is unknown" if evaluated else "data.on_error=skip trains without them"
            at = int(broken[0])
            raise DataError(f"{table.rule(at)}; {len(broken)} such phrase(s) in the split, {advice}", where=table.place(at),
                            value=table.value(at))
        self._index = rows[kept[rows]]
        if not len(self._index):
            raise DataError(f"data.source.splits.{name}: no phrase is left", where=table.files[0])
        wh = table.image_wh[table.image]
        self._boxes = clip_boxes(table.xyxy, wh)
        self._has_target = ~table.negative & (self._boxes[:, 2:] > self._boxes[:, :2]).all(1)
        counts = Counter(count_faults(table.faults[rows]))
        mine = self._index[table.faults[self._index] == 0]
        counts["clipped"] = int(is_clipped(table.xyxy[mine], wh[mine])[~table.negative[mine]].sum())
        counts.update(table.counts)
        self.dropped: Mapping[str, int] = {reason: n for reason, n in sorted(counts.items()) if n}

    @property
    def name(self) -> str:
        return self._name

    @property
    def ids(self) -> NDArray[np.int64]:
        return self.table.ids[self._index]

    def __len__(self) -> int:
        return len(self._index)

    @property
    def most_objects(self) -> int:
        return 1

    def num_objects(self) -> NDArray[np.int64]:
        """int64[len]: 1, or 0 for a phrase that names nothing."""
        return self._has_target[self._index].astype(np.int64)

    @property
    def num_negatives(self) -> int:
        """Phrases that name nothing in their image."""
        return int(self.table.negative[self._index].sum())

    def phrases(self) -> list[str]:
        """len: all phrases, without opening an image."""
        return [self.table.phrases[at] for at in self._index.tolist()]

    def image_positions(self) -> NDArray[np.int64]:
        """int64[len]: equal for phrases on one image."""
        return self.table.image[self._index]

    def image_paths(self) -> list[Path]:
        """len: where each image is; nothing is opened. One that is part of the file is called by COCO's name, else by its content."""
        names = {i: self._image_path(i) for i in np.unique(self.image_positions()).tolist()}
        return [names[i] for i in self.image_positions().tolist()]

    def _image_path(self, image: int) -> Path:
        name, content = self.table.file_names[image], self.table.contents.get(image)
        if content is None:
            return existing(self._folder, name)
        if coco_image_id(name) is not None:
            return Path(name)
        return Path("embedded") / hashlib.sha1(content, usedforsecurity=False).hexdigest()

    def sample(self, index: int, epoch: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, asked for {index}")
        table, at = self.table, int(self._index[index])
        image, sample_id = int(table.image[at]), int(table.ids[at])
        box = tuple(self._boxes[at].tolist())
        objects = (Object(TARGET, box, category_id=1, annotation_id=sample_id),) if self._has_target[at] else ()
        width, height = table.image_wh[image].astype(int).tolist()
        meta = {"file_name": table.file_names[image], "where": table.place(at), "split": self.name}
        return Sample(sample_id, self.image(image), width, height, objects, phrase=table.phrases[at], meta=meta)

    def truth(self) -> PhraseTruth:
        """Of the chosen phrases, from the file as it is."""
        table, order = self.table, self._index[np.argsort(self.ids, kind="stable")]
        ids, boxed = table.ids[order], order[~table.negative[order]]
        xyxy = table.xyxy[boxed]
        one = np.ones(len(boxed), dtype=np.int64)
        return PhraseTruth(
            ids, table.image_wh[table.image[order]], np.ones(1, dtype=np.int64), (TARGET,), table.ids[boxed], table.ids[boxed], one, xyxy,
            (xyxy[:, 2:] - xyxy[:, :2]).prod(1), np.zeros(len(boxed), dtype=np.bool_),
            phrases=tuple(table.phrases[at] for at in order.tolist()), source_image=table.image_ids[table.image[order]],
        )

    def image(self, image: int) -> Path | Image.Image:
        """The image's file, resolved to see that it stays inside, or the image that the annotation file holds; not decoded."""
        table = self.table
        if (content := table.contents.get(image)) is not None:
            try:
                return Image.open(io.BytesIO(content))
            except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError ...
                rule, problem = "the image must be readable and complete", f"{type(error).__name__}: {error}"
                raise DataError(rule, where=f"{table.files[0]} ({table.file_names[image]})", value=problem) from error
        path = existing(self._folder, table.file_names[image])
        return inside(path, self._inside, where=table.files[0])


def _chosen(
    option: str, table: PhraseTable, choice: PhraseChoice, kept: NDArray[np.bool_], *, skipping: bool
) -> NDArray[np.int64]:
    """int64: rows that count, broken ones included, in file order. Rows without an image always count.

    Args:
        skipping: an image all of whose phrases are broken is not one of the first so many.
    """
    images = np.unique(table.image[(table.image >= 0) & (kept | (not skipping))])
    if choice.image_ids is not None:
        wanted = np.asarray(list(choice.image_ids), dtype=np.int64)
        unknown = np.setdiff1d(wanted, table.image_ids)
        if unknown.size:
            raise DataError(f"{option}.image_ids must be ids of images with phrases", where=table.files[0], value=unknown[:5].tolist())
        images = images[np.isin(table.image_ids[images], wanted)]
    if choice.num_images is not None:
        if len(images) < choice.num_images:
            raise DataError(f"{option}.num_images asks for {choice.num_images} images", where=table.files[0], value=len(images))
        images = images[: choice.num_images]
    everything = choice.image_ids is None and choice.num_images is None
    rows = np.arange(len(table)) if everything else np.flatnonzero(np.isin(table.image, images) | (table.image < 0))
    if choice.num_phrases is not None:
        usable = np.flatnonzero(kept[rows])
        if len(usable) < choice.num_phrases:
            raise DataError(f"{option}.num_phrases asks for {choice.num_phrases} phrases", where=table.files[0], value=len(usable))
        rows = rows[: usable[choice.num_phrases - 1] + 1] if choice.num_phrases else rows[:0]
    return rows


