"""Phrases with boxes in JSON lines or parquet, in the spellings that exports of RefCOCO and of labelling tools use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from coordvlm.data.checks import Fault
from coordvlm.data.convention import FORMATS, BoxConvention
from coordvlm.data.detection import parse_fields
from coordvlm.data.image_keys import coco_image_id
from coordvlm.data.phrase_checks import phrase_statistics, refuse_placeholders
from coordvlm.data.phrase_records import PhraseRecords, existing
from coordvlm.data.phrase_source import PhraseChoice, PhraseSource
from coordvlm.data.phrase_table import PhraseTable
from coordvlm.data.rows import Embedded, EmbeddedImages, Row, is_parquet, read_rows, row_files
from coordvlm.data.values import no_collecting
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.overrides import hint, nearest

#: Fields that are taken for the phrase, the image and the box where none is named, the first that there is. ``question`` is none of
#: them: in the exports that have one it is the same for all rows.
TEXT_FIELDS = (
    "phrase", "phrases", "expression", "expressions", "referring_expression", "referring_expressions", "ref_exp", "refexp", "sentence",
    "sentences", "sent", "answer", "answers", "caption", "captions", "text",
)
IMAGE_FIELDS = ("image", "image_path", "file_name", "filename", "image_file", "img", "img_path")
BOX_FIELDS = ("bbox", "box", "bbox_2d", "bounding_box", "gt_bbox")
#: Keys of the text where a phrase is a dict.
_TEXT_KEYS = ("sent", "phrase", "text", "raw")
_NEGATIVES = ("allow", "refuse")


@dataclass(frozen=True, kw_only=True)
class PhraseFiles(PhraseChoice):
    """Where a split lives.

    Args:
        file: JSON lines, or parquet by its ending; a pattern with ``*`` names several. images: folder that image names start from.
            Both relative to the root or absolute.
        rows: only rows with these values, ``{split: train}``.
    """

    file: str
    images: str
    rows: Mapping[str, object] | None = None


class PhraseFile(PhraseSource):
    """A ``PhraseSource`` of rows with a phrase (or several), an image and a box. Samples are numbered in the order of the file.

    Args:
        root, on_error, test: see ``PhraseSource``.
        splits: name -> the fields of ``PhraseFiles``.
        boxes, box_format: how boxes are written, see ``BoxConvention``. Declared, never guessed.
        text_field, image_field, box_field: names of the fields; None: the first of ``TEXT_FIELDS``, ``IMAGE_FIELDS`` and ``bbox_xywh``
            (or the declared format) and ``BOX_FIELDS`` that the file has.
        negatives: ``allow`` takes a row without a box (missing, null, ``none`` or an empty list) for a phrase that names nothing in its
            image; ``refuse`` makes it an error.
        allow_placeholder: take phrases that ``phrase_checks`` refuses, whichever field they are in.
    Raises:
        DataError: bad rows, boxes that contradict the declaration, phrases that could not teach anything.
        ConfigError: parquet without pyarrow.
    """

    def __init__(
        self, *, root: str | Path, splits: Mapping[str, Mapping[str, object]], test: str | None, boxes: str, box_format: str,
        text_field: str | None, image_field: str | None, box_field: str | None, negatives: str, allow_placeholder: bool, on_error: str,
    ) -> None:
        super().__init__(root=root, on_error=on_error, test=test)
        if negatives not in _NEGATIVES:
            raise ConfigError(f"data.source.negatives must be one of {', '.join(_NEGATIVES)}, got {negatives!r}")
        self._convention = BoxConvention(boxes, box_format)
        self._named = {"text_field": text_field, "image_field": image_field, "box_field": box_field}
        other = next((f for f in FORMATS if f != box_format and box_field is not None and box_field.endswith(f"_{f}")), None)
        if other:
            raise ConfigError(f"data.source.box_field={box_field} says {other} and data.source.box_format={box_format}")
        self._negatives, self._allow = negatives == "allow", allow_placeholder
        given = {name: values for name, values in splits.items() if values is not None}
        files = {name: parse_fields(PhraseFiles, f"data.source.splits.{name}", values) for name, values in given.items()}
        if not files:
            raise ConfigError("data.source.splits must name a split at least")
        self.use({name: (self._table(name, each), each, self.root / each.images) for name, each in files.items()})

    def _table(self, name: str, files: PhraseFiles) -> PhraseTable:
        paths = row_files(self.root, files.file)
        records = PhraseRecords(
            paths[0], self.root / files.images, row_word=": row " if is_parquet(paths[0]) else ":", lenient=self.is_lenient(name),
            trains=name == "train",
        )
        embedded = EmbeddedImages()
        with no_collecting():
            rows = self._rows(records, paths, files.rows, embedded)
            if not rows:
                raise DataError("a split must have phrases: training would see no target and evaluation no truth", where=paths[0],
                                value=f"no row with {dict(files.rows)}" if files.rows else "no rows")
            # A field that says something on some row comes before one that is there and empty.
            used = dict.fromkeys(key for row in rows for key, value in (row.values or {}).items() if value is not None)
            there = list(used | dict.fromkeys(key for row in rows for key in row.values or {}))
            written = self._convention.box_format
            text = self._field("text_field", there, TEXT_FIELDS, paths[0])
            image = self._field("image_field", there, IMAGE_FIELDS, paths[0])
            box = self._field("box_field", there, (f"bbox_{written}", f"box_{written}", *BOX_FIELDS), paths[0])
            reader = _Reader(records, text, image, box, self._negatives, embedded)
            for row in rows:
                reader.add(row)
        refuse_placeholders(
            records.phrases, field=f"field {text!r}", where=f"{paths[0]} (split {name})", allowed=self._allow,
            better=partial(_better_fields, rows, text),
        )
        records.settle_sizes()
        numbers = self._convention
        return records.table(numbers, {
            Fault.BAD_BBOX: f"{box} must be 4 numbers: {numbers.numbers}",
            Fault.INVERTED: f"{box} must not be inverted ({numbers.text})",
            Fault.ZERO_AREA: f"{box} must not have zero area ({numbers.text})",
            Fault.OUT_OF_FRAME: f"{box} must lie inside the image (an excess of up to 1 px is clipped; {numbers.text})",
            Fault.BAD_PHRASE: f"{text} must be text or a list of texts",
        })

    def _rows(
        self, records: PhraseRecords, paths: tuple[Path, ...], only: Mapping[str, object] | None, embedded: EmbeddedImages
    ) -> list[Row]:
        """The rows of a split; bad ones are refused or counted."""
        records.files[:] = paths
        found = []

        def where(row: Row) -> str:
            return f"{paths[row.file]}{records.row_word}{row.number}"

        for row in read_rows(paths):
            if row.values is None:
                records.refuse("bad_line", row.problem[0], where=where(row), value=row.problem[1])
            elif only is None or all(row.values.get(key) == value for key, value in only.items()):
                found.append(embedded.take(row, where))
        return found

    def _field(self, option: str, there: Sequence[str], spellings: Sequence[str], path: Path) -> str:
        """The named field, or the first spelling that there is.

        Raises:
            ConfigError: no row has it.
        """
        named = self._named[option]
        fields = ", ".join(there)
        if named is not None and named not in there:
            raise ConfigError(f"data.source.{option}={named}: no row of {path} has it; there are {fields}{hint(nearest(named, there))}")
        found = named or next((name for name in spellings if name in there), None)
        if found is None:
            known = ", ".join(spellings)
            raise ConfigError(f"{path} has none of the fields {known}; name one with data.source.{option}: there are {fields}")
        return found


class _Reader:
    """Rows -> ``PhraseRecords``."""

    def __init__(self, records: PhraseRecords, text: str, image: str, box: str, negatives: bool, embedded: EmbeddedImages) -> None:
        self._records, self._text, self._image, self._box = records, text, image, box
        self._negatives, self._embedded, self._num_phrases = negatives, embedded, 0
        self._files: dict[str, str] = {}

    def add(self, row: Row) -> None:
        """Each phrase of a row."""
        values, records = row.values or {}, self._records
        where = f"{records.files[row.file]}{records.row_word}{row.number}"
        written, box = values.get(self._text), values.get(self._box)
        texts = written if isinstance(written, list) else [written]
        first, self._num_phrases = self._num_phrases + 1, self._num_phrases + len(texts)
        if not texts:
            records.refuse("no_phrases", "a row must have a phrase", where=where, value=written)
        image = self._image_of(values, where)
        if image is None:
            return
        none = box is None or box == [] or (isinstance(box, str) and box.strip().lower() == "none")
        fault = Fault.NO_BOX if none and not self._negatives else Fault.NONE
        for number, text in enumerate(texts, start=first):
            records.add(
                _text_of(text), None if none else box, image=image, row=row.number, file=row.file, phrase_id=number, fault=fault, value=box,
            )

    def _key(self, name: str) -> str:
        """What tells the image of a row from others: COCO's full name is one image in any folder, twelve digits are so in theirs only."""
        number = coco_image_id(name)
        if number is None:
            return name
        if PurePosixPath(name).name.startswith("COCO_"):
            return f"coco {number}"
        if name not in self._files:
            self._files[name] = str(existing(self._records.folder, name))
        return self._files[name]

    def _image_of(self, values: Mapping[str, Any], where: str) -> int | None:
        """Position of a row's image; None where it is left out."""
        records, written, content = self._records, values.get(self._image), None
        if isinstance(written, Mapping):
            written = written.get("path")
        if isinstance(written, Embedded):
            names = (written.path, *(values.get(key) for key in IMAGE_FIELDS))
            key, content = written.digest, self._embedded.content[written.digest]
            name = PurePosixPath(next((n for n in names if isinstance(n, str) and n.strip()), key)).name
        elif isinstance(written, str) and written.strip():
            name, key = written, self._key(written)
        else:
            records.refuse("bad_image", f"{self._image} must be the path of an image, or hold its bytes", where=where, value=written)
            return None
        width, height = values.get("width"), values.get("height")
        size = None if width is None and height is None else (width, height)
        if size and not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in size):
            records.refuse("bad_size", "width and height must be given together, positive integers", where=where, value=size)
            return None
        return records.image(name, key=key, size=size, where=where, content=content)  # type: ignore[arg-type]


def _text_of(entry: object) -> object:
    """The text of a phrase that may be a dict, as in exports of the UNC files."""
    if isinstance(entry, Mapping):
        return next((entry[key] for key in _TEXT_KEYS if key in entry), entry)
    return entry


def _better_fields(rows: Sequence[Row], field: str) -> list[str]:
    """Fields with texts that ``phrase_checks`` does not refuse, known spellings only."""
    found = []
    for name in TEXT_FIELDS:
        entries = [e for row in rows if (v := (row.values or {}).get(name)) is not None for e in (v if isinstance(v, list) else [v])]
        texts = [t for e in entries if isinstance(t := _text_of(e), str)]
        if name != field and texts and not phrase_statistics(texts).problems:
            found.append(f"data.source.text_field={name}")
    return found
