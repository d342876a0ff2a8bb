"""The PASCAL VOC layout: ImageSets/Main/<split>.txt, Annotations/<name>.xml, JPEGImages/<name>.jpg.

Coordinates. VOC counts pixels from 1 and means the last one too: an object over the whole width W has xmin = 1, xmax = W. As a
continuous extent that is [0, W], so x1 = xmin - 1 and x2 = xmax (the same reading as detectron2's ``load_voc_instances``). Many tools
write VOC files with coordinates from 0; ``one_based`` says which it is.
Source: Everingham et al., The PASCAL Visual Object Classes Challenge 2012 Development Kit, section 3.

Difficult objects. VOC's own evaluation neither rewards nor punishes them. COCO's evaluation knows one kind of such truth: crowds
(pycocotools overwrites ``ignore`` with ``iscrowd``), so ``difficult=ignore`` makes them crowds: never targets, and a detection mostly
inside one does not count. It differs from VOC's rule in the overlap, which for crowds is measured against the detection's area only.
``difficult=object`` treats them as any other object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from coordvlm.data.checks import Fault
from coordvlm.data.convention import BoxConvention
from coordvlm.data.detection import BoxSource, SplitChoice, parse_splits
from coordvlm.data.records import Records, category_ids, ids_of_stems
from coordvlm.data.table import leaves_folder
from coordvlm.data.values import integral
from coordvlm.utils.errors import ConfigError, DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SUFFIXES = (".jpg", ".jpeg", ".JPG", ".JPEG", ".png", ".PNG")


@dataclass(frozen=True, kw_only=True)
class VocFiles(SplitChoice):
    """Which list of ``image_sets`` a split is, without ``.txt``."""

    split: str


class Voc(BoxSource):
    """A ``BoxSource`` of VOC annotations. Categories are the names of all splits in alphabetical order, or ``classes``.

    An image's id is its name's number where all names of the split are numbers, else its position in the list. Parts of objects are
    not read. The size comes from the XML file, without one there from the image's header.

    Args:
        root, seed, class_list, num_absent, on_error: see ``BoxSource``.
        image_sets, annotations, images: folders, relative to the root.
        train, val, test: the fields of ``VocFiles``, or None. ``val`` stands in for a missing ``test``.
        one_based: whether the first pixel is 1 (VOC's own files) or coordinates are extents from 0.
        difficult: ``ignore`` or ``object``, see above.
        classes: the only names there may be, in the order of their ids; None: whatever the files say.
    Raises:
        DataError: missing or broken files, broken objects (``checks.RULES``).
    """

    def __init__(
        self, *, root: str | Path, image_sets: str, annotations: str, images: str, train: Mapping[str, object] | None,
        val: Mapping[str, object] | None, test: Mapping[str, object] | None, one_based: bool, difficult: str,
        classes: Sequence[str] | None, seed: int, class_list: str, num_absent: int, on_error: str,
    ) -> None:
        super().__init__(root=root, seed=seed, class_list=class_list, num_absent=num_absent, on_error=on_error)
        if difficult not in ("ignore", "object"):
            raise ConfigError(f"data.source.difficult must be ignore or object, got {difficult!r}")
        if not isinstance(one_based, bool):
            raise ConfigError(f"data.source.one_based must be true or false, got {one_based!r}")
        given = parse_splits(VocFiles, train=train, val=val, test=test)
        reader = _Reader(self.root / annotations, ignore_difficult=difficult == "ignore")
        found = {}
        for name, files in given.items():
            listed = self.root / image_sets / f"{files.split}.txt"
            found[name] = Records(listed, self.root / images, lenient=self.is_lenient(name), trains=name == "train")
            reader.read(found[name])
        categories = category_ids(found.values(), classes)
        convention = BoxConvention("pixel", "xyxy", one_based=one_based)
        rules = {
            Fault.BAD_OBJECT: "an object must have a name, a bndbox and, if any, a difficult of 0 or 1",
            Fault.BAD_BBOX: f"a bndbox must have one number each of {', '.join(_CORNERS)}",
            Fault.UNKNOWN_CATEGORY: "an object's name must be one of data.source.classes",
        }
        for records in found.values():
            records.settle_sizes()
        self.use({n: (r.table(categories, convention, rules), given[n], r.folder) for n, r in found.items()})


@dataclass
class Element:
    """An XML element with the line it starts in."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        return [child for child in self.children if child.tag == tag]

    def value(self, tag: str) -> str | None:
        """The text of the only child of that tag, else None."""
        found = self.all(tag)
        return found[0].text.strip() if len(found) == 1 else None


def parse_xml(data: bytes, where: object) -> Element:
    """The root element. Document types are refused, so there are no entities to expand or fetch.

    Raises:
        DataError: not XML (with the line), or a document type.
    """
    document = Element("", 0)
    stack = [document]
    parser = expat.ParserCreate()

    def start(tag: str, attributes: Mapping[str, str]) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def text(content: str) -> None:
        stack[-1].text += content

    def refuse(*_: Any) -> None:
        raise DataError("an annotation must not declare a document type or entities", where=f"{where}:{parser.CurrentLineNumber}")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, lambda tag: stack.pop(), text
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise DataError("an annotation must be XML", where=f"{where}:{error.lineno}", value=str(error)) from error
    return document.children[0]


class _Reader:
    """Reads the annotations of listed images."""

    def __init__(self, annotations: Path, *, ignore_difficult: bool) -> None:
        self.annotations, self.ignore_difficult = annotations, ignore_difficult

    def read(self, records: Records) -> None:
        """Fill ``records`` from its list."""
        try:
            lines = records.path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError as error:
            there = ", ".join(sorted(p.stem for p in records.path.parent.glob("*.txt"))[:10]) or "none"
            raise DataError(f"the list of a split must exist (lists there: {there})", where=records.path) from error
        except (OSError, UnicodeDecodeError) as error:
            raise DataError("the list of a split must be readable", where=records.path, value=str(error)) from error
        listed = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
        for (number, name), image_id in zip(listed, ids_of_stems([f"{name}.jpg" for _, name in listed]), strict=True):
            where = f"{records.path}:{number}"
            if leaves_folder(name) or re.fullmatch(r"\S+\s+(-1|0|1)", name):
                raise DataError("a line must be the name of an image without suffix; lists of one class (name and -1, 0 or 1) are not "
                                "lists of a split", where=where, value=name)
            self._add_image(records, name, image_id, where)

    def _add_image(self, records: Records, name: str, image_id: int, where: str) -> None:
        file = self.annotations / f"{name}.xml"
        try:
            root = parse_xml(file.read_bytes(), file)
            if root.tag != "annotation":
                raise DataError("the root element must be annotation", where=f"{file}:{root.line}", value=root.tag)
            size = _size(root, file)
        except FileNotFoundError:
            records.refuse("missing_annotation", "the annotation of a listed image must exist", where=where, value=str(file))
            return
        except OSError as error:
            records.refuse("bad_annotation", "an annotation must be readable", where=file, value=str(error))
            return
        except DataError as error:
            records.refuse("bad_annotation", error.rule, where=error.where, value=error.value)
            return
        suffix = next((s for s in _SUFFIXES if (records.folder / (name + s)).exists()), _SUFFIXES[0])
        image = records.add_image(name + suffix, place=str(file), image_id=image_id, size=size)
        if image is not None:
            for number, element in enumerate(root.all("object")):
                self._add_object(records, image, number, element)

    def _add_object(self, records: Records, image: int, number: int, element: Element) -> None:
        name, boxes, difficult = element.value("name"), element.all("bndbox"), element.value("difficult")
        if name is None or len(boxes) != 1 or difficult not in (None, "", "0", "1"):
            value = {"name": name, "bndbox": len(boxes), "difficult": difficult}
            records.add_box(image, None, None, number=number, line=element.line, fault=Fault.BAD_OBJECT, value=value)
            return
        written = [boxes[0].value(corner) for corner in _CORNERS]
        crowd = difficult == "1" and self.ignore_difficult
        records.add_box(image, name, _numbers(written), number=number, line=element.line, crowd=crowd)


def _numbers(written: Sequence[str | None]) -> list[object]:
    """Floats; what is none stays as it is and is refused with the rest."""
    try:
        return [float(value) for value in written if value is not None]
    except ValueError:
        return list(written)


def _size(root: Element, file: Path) -> tuple[int, int] | None:
    """(width, height), or None where the file gives no size.

    Raises:
        DataError: a size that is none.
    """
    found = root.all("size")
    if not found:
        return None
    written = (found[0].value("width"), found[0].value("height"))
    width, height = (integral(value) for value in written)
    if width is None or height is None or width <= 0 or height <= 0:
        raise DataError("size must have a width and a height, positive integers; without a size element the image's own is taken",
                        where=f"{file}:{found[0].line}", value=written)
    return width, height
