"""JSON as language models write it, read in one pass: no recursion, time linear in the text, no text is refused.

What strict JSON means stays what it means, but for objects in a list that holds numbers (there a bracket is missing). Beyond it
the reader accepts single and typographic quotes, unquoted words, unescaped quotes inside a string, Python tuples, leading zeros,
trailing and missing commas, braces and brackets that are missing, doubled or cut off, and bare coordinate tokens. It repairs
syntax and never a value: a number or a string that was cut off says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

#: Deeper nesting forgets its outermost levels: a record needs four of them.
MAX_DEPTH = 64
#: Texts after which nothing that is open can continue.
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
KEY = r"""["'“‘][A-Za-z_][\w -]{0,40}["'”’]\s*+[:：]"""
NUMBER = r"[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?(?![\w.%])"

_END = "|".join(map(re.escape, END_TOKENS))
# After a comma comes another value or key; in `the "big", red one` none does.
_AFTER_COMMA = r"""\s*+(?:["'“”‘’{}\[\]()<`/+.0-9-]|\Z|true|false|null|None|NaN|Infinity|[A-Za-z_][\w -]{0,40}["'”’]?\s*+:)"""
_FOLLOW = re.compile(rf"\s*+(?:(?P<colon>[:：])|[,，](?:{_AFTER_COMMA}|[ \t\r]*+\n)|[}}\])]|\Z|```|<\||</|{KEY})")
_NEXT_LINE = re.compile(rf"\s*+(?:[{{}}\[\]]|{KEY}|```)")
_KEY = re.compile(KEY)
_NEXT_KEY = re.compile(rf"\s*+[,，]\s*+{KEY}")
_CLOSERS = {'"': '"', "'": "'", "“": '”“"', "”": '”“"', "‘": "’‘'", "’": "’‘'"}
_IN_STRING = {c: re.compile(rf"(?s:\\.)|[{c}]|\n\s*+|{_END}") for c in set(_CLOSERS.values())}
_ESCAPE = re.compile(r"(?s)\\(u[0-9a-fA-F]{4}|.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", "\\": "\\", '"': '"', "'": "'"}


@dataclass(slots=True)
class Leaf:
    """One value and where it stands.

    Args:
        kind: ``number``, ``coord`` (a coordinate token), ``string``, ``word`` (unquoted), ``cut`` (a number that ends with the text)
            or ``broken`` (a string without an end).
        value: a float for numbers and coordinate tokens, else text with escapes resolved.
        start, end: characters [start, end) of the value, without quotes.
    """

    kind: str
    value: float | str
    start: int
    end: int


@dataclass(slots=True)
class Node:
    """An object ``{``, a list ``[`` or a tuple ``(``. For objects ``keys`` and ``items`` run in parallel; repeated keys are kept.

    ``key`` waits for its value, ``name`` for its colon. ``has_records`` is the listener's note that something inside was a record.
    """

    kind: str
    start: int
    end: int = -1
    closed: bool = False
    keys: list[Leaf] = field(default_factory=list)
    items: list[Leaf | Node | None] = field(default_factory=list)
    key: Leaf | None = None
    name: Leaf | None = None
    has_records: bool = False

    def put(self, item: Leaf | Node | None) -> None:
        """Take a value; one without a key is not kept."""
        if self.kind != "{":
            self.items.append(item)
        elif self.key is not None:
            self.keys.append(self.key)
            self.items.append(item)
            self.key = None


class Reader:
    """Reads structures and reports every one when it ends, inner ones first.

    Args:
        on_close: called with each finished node and the node around it (None outside), before it becomes a value of that node.
        coord_token: pattern with ``{k}``. stops: texts that end whatever is open, beside the end tokens and code fences.
    """

    def __init__(self, text: str, on_close: Callable[[Node, Node | None], None], *, coord_token: str, stops: tuple[str, ...]) -> None:
        self.text, self.on_close = text, on_close
        self.lex, self.coord_margin = _lexicon(coord_token, stops), coord_token.index("{k}")
        self.coord_tail = len(coord_token) - self.coord_margin - 3
        self.stack: list[Node] = []
        self.num_objects = 0
        self._ends: dict[str, tuple[int, str, int, int]] = {}

    def read(self, pos: int) -> int:
        """Read from an opening bracket, or a quoted key whose brace is missing; the position at which nothing is open any more."""
        text, stack = self.text, self.stack
        if text[pos] not in "{[(":
            self._push("{", pos)
        before = "comma"
        while (m := self.lex.match(text, pos)) is not None:
            kind, start, pos = m.lastgroup, m.start(), m.end()
            if kind == "space":
                continue
            if kind == "comma":
                top = stack[-1]
                if top.key is not None:
                    top.put(None)
                top.name = None
            elif kind == "number":
                stack[-1].put(Leaf("cut" if pos == len(text) else "number", float(m.group()), start, pos))
            elif kind == "coord":
                k = float(text[start + self.coord_margin : pos - self.coord_tail])
                stack[-1].put(Leaf("coord", k, start, pos))
            elif kind == "open":
                for at in range(max(start, pos - MAX_DEPTH), pos):
                    self._open(text[at], at)
            elif kind == "close":
                for at in range(start, pos):
                    self._close_bracket(text[at], at + 1)
                    if not stack:
                        return at + 1
            elif kind == "quote" and (text[start] in '"“”' or before in ("comma", "colon", "open") or _KEY.match(text, start)):
                pos = self._string(start)
            elif kind == "colon":
                self._colon(start)
            elif kind == "stop":
                self._flush(start)
                return start
            else:
                kind = "word"
                self._word(start, pos, before)
            before = kind or ""
            if not stack:
                return pos
        self._flush(len(text))
        return len(text)

    def _push(self, kind: str, start: int) -> None:
        if len(self.stack) == MAX_DEPTH:
            self.num_objects -= self.stack.pop(0).kind == "{"
        self.num_objects += kind == "{"
        self.stack.append(Node(kind, start))

    def _open(self, bracket: str, start: int) -> None:
        if bracket == "{" and self.stack:
            top = self.stack[-1]
            if top.kind != "{" and top.items and isinstance(top.items[-1], Leaf) and top.items[-1].kind in ("number", "coord"):
                self._close(start, closed=False)  # a list of numbers holds no objects: its bracket is missing
            if self.stack and self.stack[-1].kind == "{" and self.stack[-1].key is None and self.stack[-1].items:
                self._close(start, closed=False)  # no key for this object: the brace of the one before is missing
        self._push(bracket, start)

    def _close_bracket(self, bracket: str, end: int) -> None:
        stack, is_list = self.stack, self.stack[-1].kind != "{"
        if (bracket == "}") == is_list:
            if (self.num_objects if bracket == "}" else len(stack) - self.num_objects) == 0:
                return
            if bracket != "}" and _NEXT_KEY.match(self.text, end):
                return  # another key of the same object follows: one bracket too many
            while (stack[-1].kind == "{") == (bracket != "}"):
                self._close(end - 1, closed=False)
        self._close(end, closed=True)

    def _close(self, end: int, *, closed: bool) -> None:
        node = self.stack.pop()
        self.num_objects -= node.kind == "{"
        node.end, node.closed = end, closed
        if node.key is not None:
            node.put(None)
        parent = self.stack[-1] if self.stack else None
        self.on_close(node, parent)
        if parent is not None:
            parent.has_records |= node.has_records
            parent.put(node)

    def _flush(self, end: int) -> None:
        while self.stack:
            self._close(end, closed=False)

    def _colon(self, start: int) -> None:
        top = self.stack[-1]
        if top.kind == "{":
            if top.name is not None:
                top.key, top.name = top.name, None
            return
        last = top.items[-1] if top.items else None
        if not isinstance(last, Leaf) or last.kind not in ("string", "word"):
            return
        top.items.pop()  # a key in a list
        if top.items and isinstance(top.items[-1], Leaf) and top.items[-1].kind != "string":  # [1, 2, 3, 4, "label": the bracket is missing
            self._close(last.start, closed=False)
            if self.stack and self.stack[-1].kind == "{":
                self.stack[-1].key = last
        else:  # [{..}, "label": the brace is missing
            self._push("{", last.start)
            self.stack[-1].key = last

    def _word(self, start: int, end: int, before: str) -> None:
        top = self.stack[-1]
        last = top.name if top.kind == "{" and top.name is not None else (top.items[-1] if top.items else None)
        if before == "word" and isinstance(last, Leaf) and last.kind == "word" and top.key is None:
            last.value, last.end = self.text[last.start : end] if end - last.start < 1000 else last.value, end
            return
        leaf = Leaf("word", self.text[start:end], start, end)
        if top.kind == "{" and top.key is None:
            top.name = leaf
        else:
            top.put(leaf)

    def _string(self, start: int) -> int:
        """Take the string that opens at ``start``; the position after it. A quote that opens nothing is passed over."""
        top = self.stack[-1]
        how, end, inner = self._string_end(start)
        if how == "value" or (how == "key" and not inner):
            leaf = Leaf("string", _unescape(self.text[start + 1 : end]), start + 1, end)
            if top.kind == "{" and top.key is not None and how == "key":
                top.put(None)  # the value is missing, this is the next key
            if top.kind == "{" and top.key is None:
                top.name = leaf
            else:
                top.put(leaf)
            return end + 1
        cut = how == "end" and top.kind == "{" and start >= self._last_key
        if top.kind == "{" and top.key is not None:
            top.put(Leaf("broken", "", start + 1, end))
        return end if cut else start + 1

    @cached_property
    def _last_key(self) -> int:
        """Where the last quoted key stands: an open string before it was not cut off, its end is missing."""
        return max((m.start() for m in _KEY.finditer(self.text)), default=-1)

    def _string_end(self, start: int) -> tuple[str, int, bool]:
        """How the string at ``start`` ends, where, and whether an unescaped quote stands inside.

        A quote ends a string when something follows that may follow a string; in strict JSON the first unescaped one always does.
        ``key``: a colon follows. ``value``: anything else. ``line``: no quote before a line that starts like structure. ``end``: the
        text ended first. The answer holds for every start before that place, and is kept, so the text is searched once.
        """
        closers = _CLOSERS[self.text[start]]
        since, how, end, last_inner = self._ends.get(closers, (0, "", -1, -1))
        if not since <= start < end:
            how, end, last_inner = "end", len(self.text), -1
            for m in _IN_STRING[closers].finditer(self.text, start + 1):
                c = self.text[m.start()]
                if c == "\n":
                    if _NEXT_LINE.match(self.text, m.end()):
                        how, end = "line", m.start()
                        break
                elif c == "<":
                    end = m.start()
                    break
                elif c != "\\":
                    if follow := _FOLLOW.match(self.text, m.end()):
                        how, end = "key" if follow["colon"] else "value", m.start()
                        break
                    last_inner = m.start()
            self._ends[closers] = (start, how, end, last_inner)
        return how, end, last_inner > start


@lru_cache(maxsize=16)
def _lexicon(coord_token: str, stops: tuple[str, ...]) -> re.Pattern[str]:
    head, tail = map(re.escape, coord_token.split("{k}"))
    stop = "|".join(map(re.escape, (*END_TOKENS, "```", *stops)))
    return re.compile(
        rf"(?P<space>\s++)|(?P<comma>[,，])|(?P<number>{NUMBER})|(?P<stop>{stop})|(?P<coord>{head}[0-9]++{tail})"
        r"|(?P<open>\{++|\[++|\(++)|(?P<close>\}++|\]++|\)++)|(?P<colon>[:：])|(?P<quote>[\"'“”‘’])"
        r"|(?P<word>[;；、](?=\s*+[-+.0-9<])|[^\s{}\[\]():：,，\"'“”‘’<`]++|(?s:.))"
    )


def _unescape(raw: str) -> str:
    """JSON's escapes; one it does not know stays as it is written."""
    if "\\" not in raw:
        return raw
    return _ESCAPE.sub(lambda m: chr(int(m[1][1:], 16)) if len(m[1]) == 5 else _ESCAPED.get(m[1], m[0]), raw)
