"""What a reader of phrases collects about one split, and how that becomes a ``PhraseTable``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coordvlm.data.checks import Fault, box_faults
from coordvlm.data.convention import BoxConvention
from coordvlm.data.image_keys import coco_image_id
from coordvlm.data.phrase_table import PhraseTable, TextColumn
from coordvlm.data.sizes import read_sizes
from coordvlm.data.table import leaves_folder
from coordvlm.data.values import quads
from coordvlm.utils.errors import DataError

#: Share of inverted and out-of-frame boxes from which on the declared convention is wrong. Of 1,200 published rows none is wrong as
#: written; 56 % are with xywh read as xyxy, and 83 % the other way round.
_WRONG_SHARE = 0.1


class PhraseRecords:
    """Phrases of one split in the order of the file.

    Args:
        path: what messages about the whole split name. folder: where image names start.
        row_word: between file and row in messages. files: where rows come from, the path alone unless a reader says otherwise.
        lenient: leave out and count what would be refused. trains: whether ``data.on_error=skip`` would help.
    """

    def __init__(self, path: Path, folder: Path, *, row_word: str, lenient: bool, trains: bool) -> None:
        self.path, self.folder, self.row_word, self.lenient = path, folder, row_word, lenient
        self._hint = "; data.on_error=skip trains without it" if trains else "; without it the truth is unknown"
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self.files: list[Path] = [path]
        self._images: dict[str, int] = {}
        self._names: list[str] = []
        self._sizes: list[tuple[int, int] | None] = []
        self._places: list[str] = []
        self.contents: dict[int, bytes] = {}
        self._ids: list[int] = []
        self._known: set[int] = set()
        self._phrases: list[object] = []
        self._image: list[int] = []
        self._boxes: list[object] = []
        self._faults: list[int] = []
        self._values: dict[int, object] = {}
        self._file: list[int] = []
        self._row: list[int] = []

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def phrases(self) -> list[str]:
        """All phrases so far that say something."""
        return [p for p in self._phrases if isinstance(p, str) and p]

    def refuse(self, key: str, rule: str, *, where: object, value: object = ...) -> None:
        """Count under ``key`` and go on, or raise.

        Raises:
            DataError: unless lenient.
        """
        if not self.lenient:
            raise DataError(rule + self._hint, where=where, value=value)
        self.counts[key] += 1

    def image(self, name: str, *, key: str, size: tuple[int, int] | None, where: str, content: bytes | None = None) -> int:
        """Position of an image, new or known.

        Args:
            name: relative to the folder. key: what tells images apart. size: (width, height), None: from the file's header.
        Raises:
            DataError: a name outside the folder; another size than on an earlier row. Always.
        """
        at = self._images.get(key)
        if at is None:
            if leaves_folder(name):
                raise DataError("an image path must be relative and stay inside its folder", where=where, value=name)
            at = self._images[key] = len(self._names)
            self._names.append(name)
            self._sizes.append(size)
            self._places.append(where)
            if content is not None:
                self.contents[at] = content
        elif self._sizes[at] is None:
            self._sizes[at] = size
        elif size not in (None, self._sizes[at]):
            raise DataError(f"an image has one size: {self._sizes[at]} at {self._places[at]}", where=where, value=size)
        return at

    def add(
        self, phrase: object, box: object, *, image: int, row: int, phrase_id: int, file: int = 0, fault: Fault = Fault.NONE,
        value: object = None,
    ) -> None:
        """One phrase as it is written.

        Args:
            phrase: text. box: a list of 4 numbers, or None: the phrase names nothing in its image.
            image: a position, or -1 with a fault. file, row: where it stands. phrase_id: unique (a second one is a fault).
            fault, value: where the reader already knows better.
        """
        if not fault and (found := _phrase_fault(phrase)):
            fault, value = found, phrase
        if phrase_id in self._known:
            fault, value = Fault.DUPLICATE_SENTENCE_ID, phrase_id
        self._known.add(phrase_id)
        if fault:
            self._values[len(self._ids)] = value
        self._ids.append(phrase_id)
        self._phrases.append(phrase.strip() if isinstance(phrase, str) else None)
        self._image.append(image)
        self._boxes.append(box)
        self._faults.append(fault)
        self._file.append(file)
        self._row.append(row)

    def settle_sizes(self) -> None:
        """Read the sizes nobody declared; an image whose header cannot be read is refused or left out with its phrases."""
        unknown = [i for i, size in enumerate(self._sizes) if size is None]
        sources = [self.contents.get(i, self._file_of(i)) for i in unknown]
        for image, found in zip(unknown, read_sizes(sources, lambda at: self._places[unknown[at]]), strict=True):
            if isinstance(found, DataError):
                self.refuse("unreadable_image", found.rule, where=found.where, value=found.value)
            else:
                self._sizes[image] = found

    def _file_of(self, image: int) -> Path:
        return existing(self.folder, self._names[image])

    def table(self, convention: BoxConvention, rules: Mapping[Fault, str]) -> PhraseTable:
        """The arrays.

        Raises:
            DataError: no phrase, or boxes that contradict the declared convention.
        """
        sized = np.asarray([size is not None for size in self._sizes] + [True], dtype=bool)  # the last one is for image -1
        pick = [i for i, image in enumerate(self._image) if sized[image]]
        if not pick:
            raise DataError("a split must have phrases: training would see no target and evaluation no truth", where=self.path,
                            value="no phrases")
        image = np.asarray(self._image, dtype=np.int64)[pick]
        wh = np.asarray([size or (0, 0) for size in self._sizes], dtype=np.float64).reshape(-1, 2)
        own_wh = np.where(image[:, None] >= 0, wh[image] if len(wh) else 0.0, 0.0)
        negative = np.asarray([self._boxes[i] is None for i in pick], dtype=bool)
        raw, bad = quads([[0.0, 0.0, 0.0, 0.0] if self._boxes[i] is None else self._boxes[i] for i in pick])
        xyxy = np.where(negative[:, None], np.nan, convention.to_xyxy_px(raw, own_wh))
        faults = np.where(negative, 0, np.where(bad, np.uint8(Fault.BAD_BBOX), box_faults(xyxy, own_wh)))
        ids = np.asarray([self._ids[i] for i in pick], dtype=np.int64)
        values = {i: self._boxes[pick[i]] for i in np.flatnonzero(faults).tolist()}
        values |= {i: self._values[p] for i, p in enumerate(pick) if p in self._values}
        known = np.asarray([self._faults[i] for i in pick], dtype=np.uint8)
        faults = np.where(known > 0, known, faults).astype(np.uint8)
        table = PhraseTable(
            files=tuple(self.files), row_word=self.row_word, ids=ids, phrases=TextColumn([_encodable(self._phrases[i]) for i in pick]),
            image=image, xyxy=xyxy, negative=negative, faults=faults, file=np.asarray(self._file, dtype=np.int64)[pick],
            row=np.asarray(self._row, dtype=np.int64)[pick], image_wh=wh, image_ids=_image_ids(self._names),
            file_names=tuple(self._names), contents=dict(self.contents), values=values, counts=dict(self.counts),
            notes=tuple(self.notes), rules=rules,
        )
        boxed = np.flatnonzero(~negative & ~bad & (image >= 0))
        convention.check_range(raw[boxed], lambda at: table.place(int(boxed[at])))
        convention.check_share(faults[boxed], raw[boxed], lambda at: table.place(int(boxed[at])), limit=_WRONG_SHARE, wh_A2=own_wh[boxed])
        return table


def existing(folder: Path, name: str) -> Path:
    """The file of an image. Exports name ``COCO_train2014_<id>_<n>.jpg`` after a referring expression; COCO's own file has no ``_<n>``."""
    path = folder / name
    number = coco_image_id(name)
    if number is not None and not path.exists():
        head, _, _ = path.stem.partition(f"{number:012d}")
        plain = path.with_name(f"{head}{number:012d}{path.suffix}")
        return plain if plain.exists() else path
    return path


def _phrase_fault(phrase: object) -> Fault:
    if not isinstance(phrase, str) or _encodable(phrase) != phrase:
        return Fault.BAD_PHRASE
    return Fault.NONE if phrase.strip() else Fault.EMPTY_PHRASE


def _encodable(phrase: object) -> str:
    """The text, with ``?`` for halves of surrogate pairs (a fault)."""
    return phrase.encode("utf-8", "replace").decode("utf-8") if isinstance(phrase, str) else ""


def _image_ids(names: list[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """int64[I]: COCO's ids where every name has one of its own, else the position."""
    found = [coco_image_id(name) for name in names]
    numbers = [n for n in found if n is not None]
    own = len(set(numbers)) == len(names)
    return np.asarray(numbers if own else range(1, len(names) + 1), dtype=np.int64)
