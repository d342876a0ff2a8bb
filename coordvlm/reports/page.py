"""A small HTML builder that escapes by default, and the frame of a self-contained page.

Text reaches a page only through :func:`tag` and :func:`escape`; what is already HTML is a :class:`Markup`. A page makes no
request: its style is inline, its pictures are data URIs or inline SVG, and a content policy forbids the rest (scripts too).
"""

from __future__ import annotations

import base64
import html
import io
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from coordvlm.reports.style import CSS
from coordvlm.utils.files import atomic_write_text

_VOID = frozenset({"br", "hr", "img", "meta", "input", "col"})
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
#: Above this size a PNG becomes a JPEG without chroma subsampling: photographs, whose lines stay sharp enough.
_PNG_LIMIT = 60_000


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


Child = object  # Markup, text, number, None (nothing), or an iterable of these


def visible(text: object) -> str:
    """Text whose control, direction and surrogate characters are spelt out, so that nothing can hide or reorder a line."""
    out = []
    for char in str(text):
        kind = unicodedata.category(char)
        keep = char in "\n\t\u200d" or kind not in ("Cc", "Cf", "Cs")
        out.append(char if keep else f"\\u{ord(char):04x}")
    return "".join(out)


def escape(text: object) -> Markup:
    """Any value as safe HTML text; a Markup passes unchanged."""
    return text if isinstance(text, Markup) else Markup(html.escape(visible(text), quote=True))


def join(*children: Child) -> Markup:
    """Children one after the other, escaped."""
    return Markup("".join(_flatten(children)))


def _flatten(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if not isinstance(child, str) and isinstance(child, Iterable):
            yield from _flatten(child)
        else:
            yield escape(child)


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """``tag("p", text, class_="note")``: attribute names lose a trailing underscore and write ``_`` as ``-``; None leaves one out."""
    attrs = "".join(f' {k.rstrip("_").replace("_", "-")}="{escape(v)}"' for k, v in attributes.items() if v is not None)
    if name in _VOID:
        return Markup(f"<{name}{attrs}>")
    return Markup(f"<{name}{attrs}>{join(*children)}</{name}>")


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], *, text_columns: Iterable[int] = (0,), class_: str = "") -> Markup:
    """A table; columns outside ``text_columns`` are numbers: right-aligned, tabular figures."""
    text, head = set(text_columns), list(head)
    side = ["text" if i in text else "num" for i in range(len(head))]
    body = [tag("tr", [tag("td", cell, class_=s) for cell, s in zip(row, side, strict=True)]) for row in rows]
    heads = tag("tr", [tag("th", cell, class_=s, scope="col") for cell, s in zip(head, side, strict=True)])
    return tag("div", tag("table", tag("thead", heads), tag("tbody", body)), class_=f"table {class_}".strip())


def definitions(pairs: Iterable[tuple[Child, Child]]) -> Markup:
    """Names and values side by side; a value of None or "" is left out."""
    rows = [tag("div", tag("dt", k), tag("dd", v)) for k, v in pairs if v is not None and v != ""]
    return tag("dl", rows, class_="facts")


def missing(what: Child) -> Markup:
    """A line that says what is not there and why."""
    return tag("p", what, class_="missing")


def section(anchor: str, title: str, *children: Child, note: Child = None) -> Markup:
    """One part of a page, reachable from the navigation."""
    head = [tag("h2", title), tag("p", note, class_="note") if note is not None else None]
    return tag("section", head, children, id=anchor)


def fold(title: Child, *children: Child) -> Markup:
    """Secondary detail, closed at first."""
    return tag("details", tag("summary", title), children)


def data_uri(image: Image.Image) -> str:
    """The image inside an URI: PNG, or JPEG when a photograph would make the PNG heavy."""
    rgb = image.convert("RGB")
    buffer = io.BytesIO()
    rgb.save(buffer, format="PNG", compress_level=6)
    kind = "png"
    if buffer.tell() > _PNG_LIMIT:
        buffer, kind = io.BytesIO(), "jpeg"
        rgb.save(buffer, format="JPEG", quality=88, subsampling=0, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def picture(image: Image.Image, alt: str) -> Markup:
    """An ``<img>`` with its data inside."""
    return tag("img", src=data_uri(image), alt=alt, width=image.width, height=image.height, loading="lazy")


def document(title: str, body: Child, *, contents: Iterable[tuple[str, str]] = ()) -> str:
    """The whole page. ``contents``: (anchor, title) of the navigation."""
    links = [tag("a", name, href=f"#{anchor}") for anchor, name in contents]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Markup(f"<style>{CSS}</style>"),
    ]
    nav = tag("nav", links, aria_label="Contents") if links else None
    page = tag("html", tag("head", head), tag("body", nav, tag("main", body)), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def write(path: Path, text: str) -> Path:
    """Write the page whole or not at all; an unwritable place is an ``OutputError``."""
    atomic_write_text(path, text)
    return Path(path)
