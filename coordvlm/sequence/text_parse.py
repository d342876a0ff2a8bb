"""Text -> raw records, for every way of writing boxes as text. No text raises; time is linear in its length."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from coordvlm.sequence.lenient_json import END_TOKENS, KEY, Reader
from coordvlm.sequence.raw_record import RawAnswer, RawRecord, Style, style_of
from coordvlm.sequence.text_objects import ObjectCollector
from coordvlm.sequence.text_tags import LOC, XML_POINT, TagReader, loc_record, xml_points
from coordvlm.utils.errors import ConfigError

XML_CLOSE = re.compile(r"[^<]*+</points?>")
#: Brackets and commas left over between records are no text of their own.
STRAY = re.compile(r"[^\s,;\[\]{}()]")


def read_records(text: str, *, style: str | None, coord_token: str, needs_desc: bool = True) -> RawAnswer:
    """Everything that looks like an object, in emission order.

    Thinking before ``</think>`` is no answer and is left out; in a ``<think>`` that never ends every record is ``bad_json``. Several
    lists, fences or containers are one answer. Other choices: one object with several boxes gives a record each; keys that repeat
    inside one pair of braces begin a new record; an incomplete record keeps what could be read of it.

    Args:
        style: ``json_coord``, ``json_digits``, ``qwen2_box`` or ``json_unit``: only that way of writing, a record in another one is
            ``bad_json`` (its convention is unknown). None: any way, also of other models; descriptions may be missing, and lists and
            tuples outside objects count where there are no objects.
        coord_token: pattern of coordinate tokens with ``{k}``.
        needs_desc: False lets descriptions be missing in every style (the answer to a phrase).
    """
    if coord_token.count("{k}") != 1:
        raise ConfigError(f"coord_token must contain {{k}} exactly once, got {coord_token!r}")
    wanted = None if style is None else style_of(style)
    if wanted is not None and not needs_desc:
        wanted = replace(wanted, needs_desc=False)
    return _Scan(text, wanted, coord_token).run()


class _Scan:
    def __init__(self, text: str, style: Style | None, coord_token: str) -> None:
        self.text, self.style, self.coord_token = text, style, coord_token
        self.objects = ObjectCollector(text, style=style, coord_token=coord_token)
        self.tags = TagReader(text, style=style, coord_token=coord_token)
        with_tags = style is None or style.form == "tag"
        self.reader = Reader(
            text,
            self.objects.on_close,
            coord_token=coord_token,
            stops=(*(self.tags.opening if with_tags else ()), *(self.tags.closing if with_tags else ()), "<think>", "</think>"),
        )
        self.prose = _prose(style, self.tags.opening if with_tags else ())
        self.other: list[RawRecord] = []
        self.stray = self.truncated = self.unfinished = False

    def run(self) -> RawAnswer:
        pos, text = 0, self.text
        while m := self.prose.search(text, pos):
            self._check(pos, m.start())
            kind = m.lastgroup
            pos = m.end()
            if kind in ("bracket", "key"):
                pos = self.reader.read(m.start())
                self.truncated |= pos == len(text) and text[-1] not in "}])"
            elif kind == "tag":
                pos = self.tags.read(m.start())
            elif kind == "loc":
                record, pos = loc_record(text, m)
                self.other.append(record)
            elif kind == "xml":
                self.other += xml_points(m)
                pos = close.end() if (close := XML_CLOSE.match(text, pos)) else pos
            elif kind == "think":
                end = -1 if self.unfinished else text.find("</think>", pos)
                if end < 0:
                    self.unfinished = True
                else:
                    pos = end + len("</think>")
            elif kind == "unthink":
                self.tags.finish()
                for found in (self.objects.records, self.objects.bare, self.objects.pairs, self.tags.records, self.other):
                    found.clear()
                self.stray = self.unfinished = False
        self._check(pos, len(text))
        self.tags.finish()
        return self._answer()

    def _check(self, start: int, end: int) -> None:
        if not self.stray and STRAY.search(self.text, start, end):
            self.stray = True

    def _answer(self) -> RawAnswer:
        records = [*self.objects.records, *self.tags.records, *self.other]
        if not records and self.style is None:
            records = self.objects.bare_records()
        records.sort(key=lambda r: (r.span[0], r.value_spans[:1]))
        if self.unfinished:
            records = [replace(r, status="bad_json") for r in records]
        flags = set()
        if self.truncated or self.tags.truncated:
            flags.add("truncated")
        if self.stray or self.objects.template:
            flags.add("stray_text")
        needs_list = self.style is None or self.style.form != "tag"
        if not records and not self.objects.empty_list and (needs_list or flags):
            flags.add("no_output")
        return RawAnswer(tuple(records), frozenset(flags))


@lru_cache(maxsize=16)
def _prose(style: Style | None, tags: tuple[str, ...]) -> re.Pattern[str]:
    """What to look for outside structures."""
    parts = [rf"(?P<end>{'|'.join(map(re.escape, END_TOKENS))}|```\w*+)", "(?P<think><think>)", "(?P<unthink></think>)"]
    if style is None or style.form != "tag":
        parts += [r"(?P<bracket>[{\[(])" if style is None else r"(?P<bracket>[{\[])", f"(?P<key>{KEY})"]
    if tags:
        parts.append(f"(?P<tag>{'|'.join(map(re.escape, tags))})")
    if style is None:
        parts += [f"(?P<loc>{LOC.pattern})", f"(?P<xml>{XML_POINT.pattern})"]
    return re.compile("|".join(parts))
