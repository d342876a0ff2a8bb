"""What a text says, before anyone knows what its numbers mean: no tokenizer, no image size, no convention."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from coordvlm.sequence.lenient_json import NUMBER, Leaf
from coordvlm.utils.errors import ConfigError

Span = tuple[int, int]


@dataclass(frozen=True)
class Style:
    """What one way of writing an object demands.

    Args:
        form: ``list`` (an object with a list of four), ``axes`` (an object with a key per coordinate) or ``tag`` (between marker tokens).
        kind: ``coord`` (coordinate tokens) or ``number``.
        needs_desc: whether a record without a description is dropped.
    """

    name: str
    form: str
    kind: str
    needs_desc: bool


STYLES = {
    s.name: s
    for s in (
        Style("json_coord", "list", "coord", True),
        Style("json_digits", "list", "number", True),
        Style("qwen2_box", "tag", "number", True),
        Style("json_unit", "axes", "number", False),
    )
}


def style_of(name: str) -> Style:
    """The style by its configuration name."""
    if name not in STYLES:
        raise ConfigError(f"sequence.style must be one of {', '.join(STYLES)}, got {name!r}")
    return STYLES[name]


@dataclass(frozen=True)
class RawRecord:
    """One object as written, or the remains of one.

    Args:
        desc: stripped, escapes resolved; empty where there is none.
        values: the numbers or bins that could be read, x1 y1 x2 y2 or x y when complete. NaN stands for what was no coordinate.
        tokens: the values are bins of coordinate tokens.
        status: ``ok``, ``repaired``, ``bad_arity``, ``not_a_coordinate``, ``missing_desc`` or ``bad_json``. Whether a box is in range and
            has an area depends on the convention, and is not said here.
        form: see ``Style``; beyond those ``bare``, ``loc`` and ``xml``. is_point: two values were meant.
        keys: an object's keys in emission order.
        span, desc_span, value_spans: characters [start, end) of the record, its description and each value.
    """

    desc: str
    values: tuple[float, ...]
    tokens: bool
    status: str
    form: str
    is_point: bool
    keys: tuple[str, ...]
    span: Span
    desc_span: Span
    value_spans: tuple[Span, ...]


@dataclass(frozen=True)
class RawAnswer:
    """All records in emission order. flags: any of ``truncated`` (the text ends inside a structure), ``no_output`` (neither a record
    nor an empty list), ``stray_text``."""

    items: tuple[RawRecord, ...]
    flags: frozenset[str]


@dataclass(frozen=True)
class Desc:
    """A description: its text, where it stands, and whether its end is missing."""

    text: str = ""
    span: Span = (0, 0)
    broken: bool = False


NO_DESC = Desc()


def make_raw(
    elements: Sequence[Leaf],
    desc: Desc,
    *,
    style: Style | None,
    form: str,
    span: Span,
    regular: bool,
    is_point: bool = False,
    keys: tuple[str, ...] = (),
    needs_desc: bool = False,
) -> RawRecord:
    """The record of what stands where coordinates belong; its status is the first rule broken.

    Args:
        elements: everything found there, coordinate or not. regular: nothing had to be repaired.
        needs_desc: the form demands a description in every style.
    """
    kinds = {e.kind for e in elements}
    wanted = {style.kind} if style else {"number", "coord"}
    needs_desc |= style is not None and style.needs_desc
    if style is not None and form != style.form:
        status = "bad_json"
    elif len(elements) != (2 if is_point else 4) or "cut" in kinds or (style is not None and is_point):
        status = "bad_arity"
    elif len(kinds) != 1 or not kinds <= wanted:
        status = "not_a_coordinate"
    elif needs_desc and desc.broken:
        status = "bad_json"
    elif needs_desc and not desc.text:
        status = "missing_desc"
    else:
        status = "ok" if regular and not desc.broken else "repaired"
    shown = [e for e in elements if e.kind != "cut"][:8]
    return RawRecord(
        desc=desc.text,
        values=tuple(e.value if isinstance(e.value, float) else float("nan") for e in shown),
        tokens=kinds == {"coord"},
        status=status,
        form=form,
        is_point=is_point,
        keys=keys,
        span=span,
        desc_span=desc.span,
        value_spans=tuple((e.start, e.end) for e in shown),
    )


def clean(text: str) -> str:
    """Stripped, as valid Unicode: surrogate pairs become their character, lone ones (a byte or an escape that is none) U+FFFD."""
    text = text.strip()
    if any("\ud800" <= c <= "\udfff" for c in text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


@lru_cache(maxsize=16)
def _element(coord_token: str) -> re.Pattern[str]:
    head, tail = map(re.escape, coord_token.split("{k}"))
    return re.compile(
        rf"(?P<gap>\s++)|(?P<comma>[,，;；、])|(?P<angle><[0-9]++>)|(?P<number>{NUMBER})|(?P<coord>{head}[0-9]++{tail})"
        r"|(?P<open>\[++)|(?P<close>\]++)|(?P<paren>[()（）]++)|(?P<word>[^\s,，;；、<>\[\]()（）]++|(?s:.))"
    )


def number_groups(text: str, start: int, end: int, coord_token: str) -> list[list[Leaf]]:
    """Coordinates in a stretch of text without keys, in groups: one per innermost bracket, or per comma between ``<1><2><3><4>``; pairs
    in parentheses and plain numbers form one group. Brackets without any number are no group."""
    head, tail = coord_token.split("{k}")
    groups: list[list[Leaf]] = []
    fresh, before = True, ""
    for m in _element(coord_token).finditer(text, start, end):
        kind, raw, at = m.lastgroup, m.group(), m.span()
        if kind == "gap":
            continue
        if kind in ("open", "close"):
            fresh = True
        elif kind in ("angle", "number", "coord", "word"):
            if kind == "angle":
                leaf = Leaf("number", float(raw[1:-1]), at[0] + 1, at[1] - 1)
                fresh |= before == "comma"
            elif kind == "coord":
                leaf = Leaf("coord", float(raw[len(head) : len(raw) - len(tail)]), *at)
            elif kind == "number":
                leaf = Leaf("cut" if at[1] == len(text) else "number", float(raw), *at)
            else:
                leaf = Leaf("word", raw, *at)
            if fresh:
                groups.append([])
            groups[-1].append(leaf)
            fresh = False
        before = kind or ""
    return [g for g in groups if any(e.kind != "word" for e in g)]
