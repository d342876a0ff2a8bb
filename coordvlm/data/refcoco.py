"""RefCOCO, RefCOCO+ and RefCOCOg as UNC publishes them: ``refs(<who split it>).p``, ``instances.json`` and COCO's train2014 images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.checks import UNREADABLE, Fault
from coordvlm.data.coco_file import CocoTable, read_coco
from coordvlm.data.convention import BoxConvention
from coordvlm.data.detection import parse_fields
from coordvlm.data.phrase_checks import refuse_placeholders
from coordvlm.data.phrase_records import PhraseRecords
from coordvlm.data.phrase_source import PhraseChoice, PhraseSource
from coordvlm.data.unpickle import load_plain
from coordvlm.data.values import no_collecting
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.overrides import hint, nearest

#: Who divided the images. UNC's splits of RefCOCO and RefCOCO+ have testA (people) and testB (other things); UMD's of RefCOCOg has test;
#: Google's first split of RefCOCOg shares images between train and val.
SPLIT_BY = ("unc", "google", "umd")
TEXTS = ("sent", "raw")
#: What is wrong with an annotation's category or area does not matter here.
_UNUSED = {Fault.UNKNOWN_CATEGORY, Fault.BAD_AREA}
_REF_RULE = "a referring expression must be a dict with the integers ref_id, image_id and ann_id, the text split, and a list sentences"
_BOX_RULE = (
    "bbox of instances.json must be x, y, width, height in px of the image; too many boxes of the split are inverted, out of frame or of "
    "another unit (shown as x1, y1, x2, y2)"
)
_SENTENCE_RULE = "a sentence must be a dict with the integer sent_id and the texts sent and raw"


class RefCoco(PhraseSource):
    """A ``PhraseSource`` of the UNC layout. Each sentence is a sample; its id is ``sent_id``.

    Args:
        root, on_error, test: see ``PhraseSource``.
        folder: of the two files, relative to the root or absolute. images: of COCO's train2014 images, likewise.
        split_by: one of ``SPLIT_BY``. text: ``sent`` (lower case, cleaned, what results are published on) or ``raw`` (as it was typed).
        splits: name -> the fields of ``PhraseChoice``. A name is a value of the file's ``split``.
        allow_placeholder: take phrases that ``phrase_checks`` refuses.
    Raises:
        DataError: a pickle with anything but plain data; references without sentences, image or annotation; broken boxes.
    """

    def __init__(
        self, *, root: str | Path, folder: str, split_by: str, images: str, text: str, splits: Mapping[str, Mapping[str, object]],
        test: str | None, allow_placeholder: bool, on_error: str,
    ) -> None:
        super().__init__(root=root, on_error=on_error, test=test)
        for option, value, known in (("split_by", split_by, SPLIT_BY), ("text", text, TEXTS)):
            if value not in known:
                similar = hint(nearest(str(value), known))
                raise ConfigError(f"data.source.{option} must be one of {', '.join(known)}, got {value!r}{similar}")
        given = {name: values for name, values in splits.items() if values is not None}
        choices = {name: parse_fields(PhraseChoice, f"data.source.splits.{name}", values) for name, values in given.items()}
        path = self.root / folder / f"refs({split_by}).p"
        refs, encoding = load_refs(path)
        with no_collecting():
            instances = _Instances(read_coco(self.root / folder / "instances.json", allow_duplicate_images=on_error == "skip"))
        there = list(dict.fromkeys(ref["split"] for ref in refs))
        missing = [name for name in choices if name not in there]
        if missing or not choices:
            named = ", ".join(missing) or "none"
            raise ConfigError(f"data.source.splits must name splits of {path}, got {named}; there are {', '.join(there)}")
        if encoding != "utf-8":
            self.notes += (f"{path}: its byte strings are not UTF-8 and were read as {encoding}",)
        folder_of_images = self.root / images
        tables = {}
        for name, choice in choices.items():
            records = PhraseRecords(path, folder_of_images, row_word=": ref id ", lenient=self.is_lenient(name), trains=name == "train")
            with no_collecting():
                for ref in refs:
                    if ref["split"] == name:
                        _add(records, ref, instances, text)
            refuse_placeholders(
                records.phrases, field=f"data.source.text={text}", where=f"{path} (split {name})", allowed=allow_placeholder,
                better=lambda: [],
            )
            tables[name] = (records.table(_InstanceBoxes("pixel", "xyxy"), {}), choice, folder_of_images)
        self.use(tables)


class _InstanceBoxes(BoxConvention):
    """COCO's, which nobody declares: boxes that contradict it are the file's fault, and no option would help."""

    def check_range(self, raw_A4: NDArray[np.float64], place: Callable[[int], str]) -> None:
        with _blaming_the_file():
            super().check_range(raw_A4, place)

    def check_share(
        self, faults_A: NDArray[np.uint8], raw_A4: NDArray[np.float64], place: Callable[[int], str], *, limit: float = 0.5,
        wh_A2: NDArray[np.float64] | None = None,
    ) -> None:
        with _blaming_the_file():
            super().check_share(faults_A, raw_A4, place, limit=limit, wh_A2=wh_A2)


@contextmanager
def _blaming_the_file() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(_BOX_RULE, where=error.where, value=error.value) from None


class _Instances:
    """The boxes and images of ``instances.json`` by id."""

    def __init__(self, table: CocoTable) -> None:
        self.table = table
        self.box = _by_id(table.ann_ids)
        self.image = _by_id(table.image_ids)
        self.xyxy: list[list[float]] = table.ann_xyxy.tolist()
        self.wh: list[tuple[int, int]] = [(int(w), int(h)) for w, h in table.image_wh.tolist()]
        self.faults: list[int] = table.faults.tolist()


def _by_id(ids: NDArray[np.int64]) -> dict[int, int]:
    return {number: at for at, number in reversed(list(enumerate(ids.tolist())))}


def load_refs(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The referring expressions of a file, checked to be what they should, and how its byte strings were read.

    Raises:
        DataError: see ``load_plain``; no list, or an entry that is no referring expression.
    """
    found, encoding = load_plain(path)
    if not isinstance(found, list) or not found:
        raise DataError("the file must hold a list of referring expressions, at least one", where=path, value=type(found).__name__)
    for at, ref in enumerate(found):
        where = f"{path}: [{at}]"
        if not isinstance(ref, dict):
            raise DataError(_REF_RULE, where=where, value=type(ref).__name__)
        wrong = [key for key in ("ref_id", "image_id", "ann_id") if type(ref.get(key)) is not int]
        wrong += [] if isinstance(ref.get("split"), str) else ["split"]
        wrong += [] if isinstance(ref.get("sentences"), Sequence) and not isinstance(ref["sentences"], str) else ["sentences"]
        if wrong:
            raise DataError(_REF_RULE, where=f"{where}, ref id {ref.get('ref_id')}", value={key: ref.get(key) for key in wrong})
    return found, encoding


def _add(records: PhraseRecords, ref: dict[str, Any], instances: _Instances, text: str) -> None:
    row, where = ref["ref_id"], f"{records.path}{records.row_word}{ref['ref_id']}"
    if not ref["sentences"]:
        records.refuse("no_sentences", "a referring expression must have sentences", where=where, value=[])
        return
    fault, value, image = Fault.NONE, None, -1
    box: list[float] | None = None
    at = instances.image.get(ref["image_id"])
    if at is None:
        fault, value = Fault.UNKNOWN_IMAGE, ref["image_id"]
    else:
        name = instances.table.image_name(at)  # the ref's own file_name has the annotation's id appended
        image = records.image(name, key=name, size=instances.wh[at], where=where)
    found = instances.box.get(ref["ann_id"])
    if not fault and (found is None or instances.table.ann_image[found] != at):
        fault, value = Fault.UNKNOWN_ANNOTATION, ref["ann_id"]
    elif not fault and found is not None:
        box = instances.xyxy[found]
        if (known := Fault(instances.faults[found])) in UNREADABLE - _UNUSED:
            fault, value = known, instances.table.value(found)
    for sentence in ref["sentences"]:
        if not isinstance(sentence, dict) or type(sentence.get("sent_id")) is not int or not isinstance(sentence.get(text), str):
            raise DataError(_SENTENCE_RULE, where=where, value=sentence)
        records.add(
            sentence[text], box or [0.0, 0.0, 0.0, 0.0], image=image, row=row, phrase_id=sentence["sent_id"], fault=fault, value=value,
        )
