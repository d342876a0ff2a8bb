"""Boxes between marker tokens, ``<|object_ref_start|>desc<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>``, and the like."""

from __future__ import annotations

import re
from functools import partial

from coordvlm.sequence.lenient_json import END_TOKENS, Leaf
from coordvlm.sequence.raw_record import NO_DESC, Desc, RawRecord, Style, clean, make_raw, number_groups

#: Markers of a description and of a box, opening and closing: Qwen2-VL; Qwen-VL, InternVL, MiniCPM-V, UI-TARS; DeepSeek-VL2.
QWEN2 = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")
FAMILIES = (
    QWEN2,
    ("<ref>", "</ref>", "<box>", "</box>", "<bbox>", "</bbox>", "<point>", "</point>"),
    ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"),
)
#: PaliGemma: y1 x1 y2 x2, label, ``;``. Molmo: <point x= y= alt=>.
LOC = re.compile(r"<loc[0-9]{4}>(?: ?<loc[0-9]{4}>)*+")
LOC_LABEL = re.compile(r"(?:<seg[0-9]{3}>)*+([^<;\n]*+)")
XML_POINT = re.compile(r"<points?\s([^<>]*+)>")
XML_ATTRIBUTE = re.compile(r"""\b([xy])([0-9]{0,3})\s?=\s?["']?(-?[0-9.]++)|\balt\s?=\s?(?:"([^"]*+)|'([^']*+))""")
SEPARATED = re.compile(r"[\s,;]*+")


class TagReader:
    """Reads regions between marker tokens; ``at`` says where one begins.

    Args:
        style: None reads the markers of other models, too.
    """

    def __init__(self, text: str, *, style: Style | None, coord_token: str) -> None:
        self.text, self.style, self.coord_token = text, style, coord_token
        families = FAMILIES if style is None else (QWEN2,)
        self.refs = {f[0]: f[1] for f in families}
        self.boxes = {f[i]: f[i + 1] for f in families for i in range(2, len(f), 2)}
        self.opening = (*self.refs, *self.boxes)
        self.closing = (*self.refs.values(), *self.boxes.values())
        self._ends = {tag: re.compile("|".join(map(re.escape, (*f, *END_TOKENS)))) for f in families for tag in f[::2]}
        self.records: list[RawRecord] = []
        self.truncated = False
        self._desc, self._desc_start, self._desc_end, self._used, self._ref_closed = NO_DESC, 0, -1, True, True

    def read(self, pos: int) -> int:
        """Read the region whose opening marker stands at ``pos``; the position after it."""
        tag = next(t for t in self.opening if self.text.startswith(t, pos))
        start = pos + len(tag)
        following = self._ends[tag].search(self.text, start)
        end = following.start() if following else len(self.text)
        self.truncated |= following is None
        closer = self.refs.get(tag) or self.boxes[tag]
        closed = following is not None and following.group() == closer
        after = following.end() if closed and following else end
        if tag in self.refs:
            self.finish()
            broken = following is None
            desc = "" if broken else clean(self.text[start:end])
            self._desc, self._desc_start, self._desc_end, self._used = Desc(desc, (start, end), broken), pos, after, False
            self._ref_closed = closed
        else:
            self._box(pos, start, end, after, closed)
        return after

    def finish(self) -> None:
        """A description without a box is a broken record of this style; other models name things in passing."""
        if self.style is not None and not self._used:
            span = (self._desc_start, self._desc_end)
            self.records.append(make_raw([], self._desc, style=self.style, form="tag", span=span, regular=False))
        self._used = True

    def _box(self, pos: int, start: int, end: int, after: int, closed: bool) -> None:
        near = self._desc_end >= 0 and SEPARATED.fullmatch(self.text, self._desc_end, pos) is not None
        if not near:
            self.finish()
        desc = self._desc if near else NO_DESC
        content = self.text[start:end].strip()
        if self.style is None and content in ("", "None", "[]", "[[]]"):
            self._used = True  # the class was looked for and is absent
            return
        groups = number_groups(self.text, start, end, self.coord_token) or [[]]
        first = self._desc_start if near and not self._used else pos
        plain = closed and (not near or self._ref_closed)
        make = partial(make_raw, style=self.style, form="tag")
        if self.style is not None:
            pairs = re.fullmatch(r"\([^()]*+\),\s?\([^()]*+\)", content) is not None
            elements: list[Leaf] = [e for g in groups for e in g]  # one box a region, whatever the brackets
            if content or desc is not NO_DESC:
                self.records.append(make(elements, desc, span=(first, after), regular=plain and pairs))
        else:
            for i, elements in enumerate(groups):
                is_point = closed and len(groups) == 1 and len(elements) == 2  # GUI agents click between box markers, too
                self.records.append(make(elements, desc, span=(first if i == 0 else pos, after), regular=plain, is_point=is_point))
        self._used = True
        if near:
            self._desc_end = after  # another box of the same description may follow


def loc_record(text: str, m: re.Match[str]) -> tuple[RawRecord, int]:
    """``<loc0100><loc0200><loc0300><loc0400> dog``: the record, x first, and the position after its label."""
    numbers = [Leaf("number", float(n.group()[4:8]), n.start() + 4, n.start() + 8) for n in re.finditer(r"<loc....>", m.group())]
    for e in numbers:
        e.start, e.end = e.start + m.start(), e.end + m.start()
    elements = [numbers[i] for i in (1, 0, 3, 2)] if len(numbers) == 4 else numbers
    label = LOC_LABEL.match(text, m.end())
    assert label is not None
    desc = Desc(clean(label[1]), label.span(1))
    make = partial(make_raw, style=None, form="loc", regular=" " not in m.group(), needs_desc=True, keys=("y1", "x1", "y2", "x2"))
    return make(elements, desc, span=(m.start(), label.end())), label.end()


def xml_points(m: re.Match[str]) -> list[RawRecord]:
    """``<point x="63.5" y="44.2" alt="dog">``, ``<points x1= y1= x2= y2= .. alt=>``: one record per number."""
    values: dict[str, dict[str, Leaf]] = {}
    desc = NO_DESC
    for a in XML_ATTRIBUTE.finditer(m.group()):
        if a[1]:
            try:
                leaf = Leaf("number", float(a[3]), m.start() + a.start(3), m.start() + a.end(3))
            except ValueError:
                leaf = Leaf("word", a[3], m.start() + a.start(3), m.start() + a.end(3))
            values.setdefault(a[2], {})[a[1]] = leaf
        else:
            group = 4 if a[4] is not None else 5
            desc = Desc(clean(a[group]), (m.start() + a.start(group), m.start() + a.end(group)))
    return [
        make_raw([v[k] for k in "xy" if k in v], desc, style=None, form="xml", span=m.span(), regular=True, is_point=True)
        for v in values.values()
    ]
