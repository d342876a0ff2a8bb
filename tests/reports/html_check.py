"""What every page must be: balanced tags, nothing fetched from outside, no script, anchors that exist."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"br", "hr", "img", "meta", "input", "col", "link"}


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.problems: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if not self.stack or self.stack[-1] != "style":
            self.text.append(data)


def read(path: Path) -> Checker:
    """Parse a page and fail on anything a self-contained page must not have."""
    page = Checker()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert not page.problems, page.problems[:5]
    assert not page.stack, page.stack
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.tags:
        assert tag not in {"script", "iframe", "link", "object", "base"}, tag
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "action", "srcset"}:
                assert value is not None
                assert value.startswith(("#", "data:image/")), (tag, name, value[:60])
                assert not value.startswith("#") or value[1:] in ids, value
    return page
