"""JSON objects and bare lists -> raw records: which key is the box, which the description, and what else models call them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import partial

from coordvlm.sequence.lenient_json import Leaf, Node
from coordvlm.sequence.raw_record import NO_DESC, Desc, RawRecord, Style, clean, make_raw, number_groups

BOX_KEYS = {
    "bbox_2d", "bbox2d", "bbox", "box_2d", "box2d", "box", "bounding_box", "boundingbox", "bboxes", "boxes", "bounding_boxes",
    "bboxes_2d", "boxes_2d", "bounding_box_2d", "bbox_list", "bbox_xyxy", "box_xyxy", "xyxy", "bbox_coordinates", "box_coordinates",
}  # fmt: skip
POINT_KEYS = {"point_2d", "point2d", "point", "points", "points_2d"}
#: Keys under which models write four numbers or two.
EITHER_KEYS = {"position", "coordinate", "coordinates", "coords", "location"}
#: Spellings of x1, y1, x2, y2.
AXIS_KEYS = (
    {"x_min", "xmin", "x1", "left"},
    {"y_min", "ymin", "y1", "top"},
    {"x_max", "xmax", "x2", "right"},
    {"y_max", "ymax", "y2", "bottom"},
)
#: Spellings of the two corners, each an object of x and y or a list of two.
CORNER_KEYS = ({"top_left", "topleft", "left_top"}, {"bottom_right", "bottomright", "right_bottom"})
AXIS_OF = {key: axis for axis, keys in enumerate(AXIS_KEYS) for key in keys}
#: The first of these that an object has is its description; a mapping of languages gives English, else its first entry.
DESC_KEYS = (
    "label", "desc", "description", "class_name", "class", "category", "object_name", "object", "name_en", "name", "names", "phrase",
    "ref", "title", "caption", "text_content",
)  # fmt: skip
KNOWN_KEYS = BOX_KEYS | POINT_KEYS | EITHER_KEYS | AXIS_OF.keys() | set(DESC_KEYS)
NO_TEXT = {"null", "none", "nan", "true", "false"}
#: Words that a model means as a (bad) number; any other word in a list is a template's ``[x1, y1, x2, y2]`` repeated.
NO_NUMBER = {"null", "none", "nan", "infinity", "inf", "-infinity", "-inf"}
#: What stands between numbers instead of a comma.
SEPARATORS = (";", "；", "、")
PLACEHOLDER = re.compile(r"[A-Za-z_]\w*|\.\.\.")


class ObjectCollector:
    """The listener of ``lenient_json.Reader``: gathers records from objects, and numbers in bare brackets.

    ``records`` are objects. ``bare`` are lists of four (and an optional string) outside objects, ``pairs`` runs of adjacent
    ``(x, y)``; they only count where no object does. ``empty_list``: a list without anything in it was closed.
    """

    def __init__(self, text: str, *, style: Style | None, coord_token: str) -> None:
        self.text, self.style, self.coord_token = text, style, coord_token
        head, tail = map(re.escape, coord_token.split("{k}"))
        self._as_digits = partial(re.compile(rf"{head}([0-9]+){tail}").sub, r"\1")
        self.records: list[RawRecord] = []
        self.bare: list[Node] = []
        self.pairs: list[list[Node]] = []
        self.empty_list = self.template = False

    def on_close(self, node: Node, parent: Node | None) -> None:
        """See ``Reader``."""
        if node.kind == "{":
            found = self._object(node, parent)
            self.records += found
            node.has_records |= bool(found)
        elif not node.items:
            self.empty_list |= node.closed
        elif self.style is None and (parent is None or parent.kind != "{" or parent.key is None):
            self._bare(node)

    def _object(self, node: Node, parent: Node | None) -> list[RawRecord]:
        key = _name(parent.key) if parent is not None and parent.kind == "{" and parent.key is not None else None
        if key in BOX_KEYS | POINT_KEYS | EITHER_KEYS and (_axes(node) or _point(node)):
            return []  # the value of a box key: its object reads it
        if key in CORNER_KEYS[0] | CORNER_KEYS[1] and _point(node):
            return []  # a corner of a box is no point
        groups = _split(node)
        out = []
        for keys, items in groups:
            one = len(groups) == 1 and len(keys) == len(node.keys)
            span = (node.start, node.end) if one else (keys[0].start - (keys[0].kind == "string"), _end(items[-1], keys[-1]))
            out += self._group(keys, items, span, node, is_value=key is not None, one=one)
        return out

    def _group(
        self, keys: list[Leaf], items: list[Leaf | Node | None], span: tuple[int, int], node: Node, *, is_value: bool, one: bool
    ) -> list[RawRecord]:
        names = [_name(k) for k in keys]
        desc = _description(names, items)
        make = partial(make_raw, style=self.style, span=span, keys=tuple(str(k.value) for k in keys))
        strict = one and node.closed and self._is_strict(span)
        for known in (BOX_KEYS, EITHER_KEYS, POINT_KEYS):
            for name, item in ((n, i) for n, i in zip(names, items, strict=True) if n in known):
                values, plain = self._values(item, of_points=name in POINT_KEYS)
                out = []
                for v, own in zip(values, _descriptions(names, items, desc, len(values)), strict=True):
                    if self._is_template(v):
                        continue
                    is_point = name in POINT_KEYS or (name in EITHER_KEYS and len(v) <= 2)
                    out.append(make(v, own, form="list", regular=strict and plain, is_point=is_point))
                return out
        axes = {AXIS_OF[n]: item for n, item in zip(names, items, strict=True) if n in AXIS_OF}
        if axes:
            elements = [_as_number(axes[a]) for a in sorted(axes)]
            if self._is_template(elements):
                return []
            plain = all(isinstance(i, Leaf) and i.kind == "number" for i in axes.values())
            return [make(elements, desc, form="axes", regular=strict and plain)]
        corners = _corners(names, items)
        if corners:
            return [make(corners, desc, form="axes", regular=False)]
        point = _point(node) if one else None
        if point and not node.has_records:
            return [make(point, desc, form="axes", regular=strict, is_point=True)]
        if desc is not NO_DESC:
            whole = not node.has_records and all(not isinstance(i, Node) or _is_numbers(i) for i in items)
            return [make([], desc, form=self.style.form if self.style else "list", regular=False)] if whole and not is_value else []
        return self._by_label(keys, items, make) if self.style is None else []

    def _by_label(self, keys: list[Leaf], items: list[Leaf | Node | None], make: partial[RawRecord]) -> list[RawRecord]:
        """``{"cat": [1, 2, 3, 4], "dog": [[..], [..]]}``: no key is known, so those with four numbers are labels."""
        out = []
        for key, item in zip(keys, items, strict=True):
            if isinstance(item, Node) and item.kind != "{" and not _name(key).endswith("wh"):  # xywh: not two corners
                for v in self._values(item, of_points=False)[0]:
                    if len(v) == 4 and {e.kind for e in v} in ({"number"}, {"coord"}):
                        desc = Desc(clean(str(key.value)), (key.start, key.end))
                        out.append(make(v, desc, form="list", regular=False))
        return out

    def _values(self, item: Leaf | Node | None, *, of_points: bool) -> tuple[list[list[Leaf]], bool]:
        """The coordinates under a box or point key, one list per box or point, and whether they were written as one plain list."""
        if isinstance(item, Leaf):
            if item.kind == "string" and item.end - item.start <= 300:
                groups = number_groups(self.text, item.start, item.end, self.coord_token)
                return groups or [[]], False
            return [[]] if item.kind != "number" else [[item]], False
        if item is None:
            return [[]], False
        if item.kind == "{":
            return [_axes(item) or _point(item) or []], False
        nested = [i for i in item.items if isinstance(i, Node)]
        if not nested:
            leaves = [_as_number(i) for i in item.items]
            return _rows(leaves), item.closed and all(a is b for a, b in zip(leaves, item.items, strict=True))
        if not of_points and len(nested) > 1 and all(n.kind != "{" and len(n.items) == 2 for n in nested):  # two corners, or a polygon
            return [[_as_number(i) for n in nested for i in n.items]], False
        return [[_as_number(i) for i in n.items] if n.kind != "{" else (_axes(n) or _point(n) or []) for n in nested], False

    def _is_template(self, elements: Sequence[Leaf]) -> bool:
        words = [str(e.value) for e in elements if e.kind in ("word", "string")]
        found = bool(words) and len(words) == len(elements) and all(PLACEHOLDER.fullmatch(w) and w.lower() not in NO_NUMBER for w in words)
        self.template |= found
        return found

    def _is_strict(self, span: tuple[int, int]) -> bool:
        try:
            json.loads(self._as_digits(self.text[slice(*span)]))
        except (ValueError, RecursionError):
            return False
        return True

    def _bare(self, node: Node) -> None:
        rows = _rows([i for i in node.items if isinstance(i, Leaf)])
        if len(rows) > 1 and not any(isinstance(i, Node) for i in node.items):
            for row in rows:
                if row:
                    self._bare(Node("[", row[0].start, row[-1].end, closed=node.closed, items=[*row]))
            return
        if len(node.items) > 5 or any(isinstance(i, Node) for i in node.items):
            return
        numbers = sum(isinstance(i, Leaf) and i.kind in ("number", "coord", "cut") for i in node.items)
        last_item = node.items[-1]
        cut = node.kind == "[" and isinstance(last_item, Leaf) and last_item.kind == "cut"
        if numbers == 4 or (cut and numbers == len(node.items)):
            self.bare.append(node)
        elif numbers == len(node.items) and (numbers == 2 or (numbers == 1 and not node.closed)):
            last = self.pairs[-1][-1].end if self.pairs else -99
            if node.start - last <= 8 and not self.text[last : node.start].strip(", \n"):
                self.pairs[-1].append(node)
            else:
                self.pairs.append([node])

    def bare_records(self) -> list[RawRecord]:
        """Boxes outside objects; points where there are none either."""
        make = partial(make_raw, style=None, form="bare")
        boxes = []
        for node in self.bare:
            leaves = [i for i in node.items if isinstance(i, Leaf)]
            numbers = [e for e in leaves if e.kind in ("number", "coord", "cut")]
            rest = [e for e in leaves if e.kind not in ("number", "coord", "cut")]
            if not rest or rest[0].kind == "string":
                desc = Desc(clean(str(rest[0].value)), (rest[0].start, rest[0].end)) if rest else NO_DESC
                boxes.append(make(numbers, desc, span=(node.start, node.end), regular=node.closed and node.kind == "["))
        if self.pairs and re.fullmatch(r"\s*+,[\s(]*+", self.text[self.pairs[-1][-1].end :]):
            boxes.append(make([], NO_DESC, span=(self.pairs[-1][0].start, len(self.text)), regular=False))  # a corner was to follow
            self.pairs.pop()
        joined = [([e for n in run for e in n.items if isinstance(e, Leaf)], (run[0].start, run[-1].end)) for run in self.pairs]
        boxes += [make(elements, NO_DESC, span=span, regular=False) for elements, span in joined if len(elements) > 2]
        if boxes:
            return sorted(boxes, key=lambda r: r.span)
        return [make(elements, NO_DESC, span=span, is_point=True, regular=True) for elements, span in joined]


def _name(key: Leaf | None) -> str:
    return "" if key is None else str(key.value).strip(" \t\n`").lower().replace("-", "_").replace(" ", "_")


def _end(item: Leaf | Node | None, key: Leaf) -> int:
    return key.end if item is None else item.end + (isinstance(item, Leaf) and item.kind == "string")


def _split(node: Node) -> list[tuple[list[Leaf], list[Leaf | Node | None]]]:
    """Keys and items, cut before every key that repeats: several objects in one pair of braces. What already gave records, and
    an unknown key without a value, is left out."""
    groups: list[tuple[list[Leaf], list[Leaf | Node | None]]] = []
    seen: set[object] = set()
    for key, item in zip(node.keys, node.items, strict=True):
        if (item is None and _name(key) not in KNOWN_KEYS) or (isinstance(item, Node) and item.has_records):
            continue
        if not groups or key.value in seen:
            groups.append(([], []))
            seen = set()
        seen.add(key.value)
        groups[-1][0].append(key)
        groups[-1][1].append(item)
    return groups


def _axes(node: Node) -> list[Leaf] | None:
    """The four values of an object with a key per coordinate, in the order x1, y1, x2, y2."""
    found = {AXIS_OF[_name(k)]: i for k, i in zip(node.keys, node.items, strict=True) if _name(k) in AXIS_OF}
    if len(found) == 4:
        return [_as_number(found[a]) for a in range(4)]
    return _corners([_name(k) for k in node.keys], node.items)


def _point(node: Node) -> list[Leaf] | None:
    """x and y of ``{"x": .., "y": ..}``. With a width or height it is a box whose anchor nobody declared: not read."""
    names = {_name(k): i for k, i in zip(node.keys, node.items, strict=True)}
    if not {"x", "y"} <= names.keys() or names.keys() & {"w", "h", "width", "height"}:
        return None
    return [_as_number(names["x"]), _as_number(names["y"])]


def _corners(names: Sequence[str], items: Sequence[Leaf | Node | None]) -> list[Leaf] | None:
    """The four values of ``{"top_left": [x1, y1], "bottom_right": [x2, y2]}``."""
    out: list[Leaf] = []
    for spellings in CORNER_KEYS:
        node = next((i for n, i in zip(names, items, strict=True) if n in spellings), None)
        if not isinstance(node, Node):
            return None
        out += (_point(node) or []) if node.kind == "{" else [_as_number(i) for i in node.items]
    return out


def _descriptions(names: Sequence[str], items: Sequence[Leaf | Node | None], desc: Desc, n: int) -> list[Desc]:
    """Those of n boxes of one object: a list of ``labels`` as long as the boxes (Florence-2) names each, else all have the same."""
    node = next((i for name, i in zip(names, items, strict=True) if name == "labels"), None)
    leaves = [i for i in node.items if isinstance(i, Leaf) and i.kind == "string"] if isinstance(node, Node) else []
    return [Desc(clean(str(e.value)), (e.start, e.end)) for e in leaves] if desc is NO_DESC and len(leaves) == n else [desc] * n


def _is_numbers(node: Node) -> bool:
    return node.kind != "{" and bool(node.items) and all(isinstance(i, Leaf) and i.kind in ("number", "coord", "cut") for i in node.items)


def _rows(leaves: list[Leaf]) -> list[list[Leaf]]:
    """Boxes between semicolons, ``[x1, y1, x2, y2; x1, ..]``; any other semicolon or enumeration comma is a comma."""
    rows: list[list[Leaf]] = [[]]
    for e in leaves:
        if e.kind == "word" and e.value in SEPARATORS:
            rows.append([])
        else:
            rows[-1].append(e)
    return rows if len(rows[0]) == 4 and rows[1:] != [[]] else [[e for row in rows for e in row]]


def _as_number(item: Leaf | Node | None) -> Leaf:
    """A number in quotes is a number; anything else that is no value becomes a word."""
    if isinstance(item, Node) or item is None:
        return Leaf("word", "", item.start if item else 0, item.end if item else 0)
    if item.kind == "string" and re.fullmatch(r"\s*[-+]?[0-9]{1,9}(\.[0-9]{0,9})?\s*", str(item.value)):
        return Leaf("number", float(item.value), item.start, item.end)
    return item


def _description(names: Iterable[str], items: Iterable[Leaf | Node | None]) -> Desc:
    of = {name: item for name, item in zip(names, items, strict=True) if name in DESC_KEYS or name.startswith(("name_", "label_"))}
    for name in (*(k for k in DESC_KEYS if k in of), *of):
        item = of[name]
        if isinstance(item, Node):
            if item.kind == "{":
                entries = {_name(k): i for k, i in zip(item.keys, item.items, strict=True)}
                item = entries.get("en") or entries.get("english") or next(iter(entries.values()), None)
            else:
                item = item.items[0] if len(item.items) == 1 else None
        if isinstance(item, Leaf):
            span = (item.start, item.end)
            if item.kind == "broken":
                return Desc("", span, broken=True)
            text = clean(str(item.value)) if item.kind in ("string", "word") else f"{item.value:g}" if isinstance(item.value, float) else ""
            if not (item.kind == "word" and text.lower() in NO_TEXT):
                return Desc(text, span)
        elif name in of:
            return Desc()
    return NO_DESC
