from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordvlm.sequence.lenient_json import MAX_DEPTH, Leaf, Node, Reader
from tests.sequence.texts import COORD_TOKEN


def read(text: str, **changes: object) -> tuple[object, int]:
    """The outermost structure as Python values, and where it ended."""
    outer: list[Node] = []
    reader = Reader(text, lambda node, parent: outer.append(node) if parent is None else None, coord_token=COORD_TOKEN, stops=("</think>",))
    end = reader.read(0)
    return plain(outer[-1]), end


def plain(item: Leaf | Node | None) -> object:
    if isinstance(item, Node):
        values = [plain(i) for i in item.items]
        return dict(zip((str(k.value) for k in item.keys), values, strict=True)) if item.kind == "{" else values
    if item is None or item.kind in ("broken", "cut"):
        return None if item is None else item.kind
    if item.kind == "word":
        return {"true": True, "false": False, "null": None}.get(str(item.value), f"word {item.value}")
    return item.value


NUMBERS = st.integers(-(10**9), 10**9).map(float) | st.floats(allow_nan=False, allow_infinity=False)
OTHERS = st.none() | st.booleans() | st.text(max_size=8)


def deep(values: st.SearchStrategy) -> st.SearchStrategy:
    """No list holds numbers and objects: the one thing that is read in another way."""
    return st.lists(values, max_size=4) | st.lists(NUMBERS, max_size=4) | st.dictionaries(st.text(max_size=6), values | NUMBERS, max_size=4)


@settings(max_examples=300, deadline=None)
@given(deep(st.recursive(OTHERS, deep, max_leaves=12)), st.sampled_from([None, 1]), st.booleans())
def test_strict_json_means_what_it_means(value: object, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    def halves_joined(v: object) -> object:  # escapes beyond U+FFFF are two halves until a description is cleaned
        return json.loads(json.dumps(v).encode("utf-16", "surrogatepass").decode("utf-16"))

    got, end = read(text)
    assert halves_joined(got) == value
    assert end == len(text)


@pytest.mark.parametrize(
    ("text", "want"),
    [("{'a': 'it's', 'b': 1}", {"a": "it's", "b": 1}),
     ('{"a": "the " big " one", "b": 1}', {"a": 'the " big " one', "b": 1}),
     ("{“a”: “b”, ‘c’: ‘d’}", {"a": "b", "c": "d"}),
     ('{a: cat, "b": red car}', {"a": "word cat", "b": "word red car"}),
     ('{"a": 1 "b": 2}', {"a": 1, "b": 2}),
     ('{"a": "x" "b": 2}', {"a": "x", "b": 2}),
     ('{"a": "x, "b": 2}', {"a": "broken", "b": 2}),
     ('{"a": "x\n "b": 2}', {"a": "broken", "b": 2}),
     ('{"a": "x\ny", "b": 2}', {"a": "x\ny", "b": 2}),
     ('{"a": , "b": 2}', {"a": None, "b": 2}),
     ('{"a": "b": 2}', {"a": None, "b": 2}),
     ('{"a": [1, 2, "b": 3}', {"a": [1, 2], "b": 3}),
     ('[1 2, 03, -.5, 1e3,]', [1, 2, 3, -0.5, 1000]),
     ("[1px, 2%, 0x3, 4_5, 6..7]", ["word 1px", "word 2%", "word 0x3", "word 4_5", "word 6..7"]),
     ("(1, (2, 3), [4)", [1, [2, 3], [4]]),
     ("[<|coord_7|>, <|coord_1000|>, <|coord_x|>]", [7, 1000, "word <|coord_x|>"]),
     ("[1, 2", [1, "cut"]),
     ('{"a": "b', {"a": "broken"}),
     ('{"a', {}),
     ('{"a": "caf\\u00e9 \\/ \\d \\""}', {"a": 'café / \\d "'}),
     ("[1, 2</think>", [1, 2]),
     ("[1, 2```", [1, 2]),
     ('{"a": 5" b", "c": 1}', {"a": 5, "c": 1}),
     ('{"a": [1, 2, {"b": 3}', {"b": 3}),
     ("[" * (MAX_DEPTH * 3), [[]])],
)  # fmt: skip
def test_what_models_write(text: str, want: object) -> None:
    got, end = read(text)
    if text == "[" * len(text):
        assert end == len(text)
    else:
        assert got == want
        assert end == (len(text) if "</" not in text and "``" not in text else 5)


def test_it_ends_where_nothing_is_open() -> None:
    assert read('[1, [2]] {"a": 1}') == ([1, [2]], 8)
    assert read("[1]]]") == ([1], 3)
    assert read('"a": 1, "b": [2]} x') == ({"a": 1, "b": [2]}, 17)
    assert read("{{[1, 2]}") == ({}, 9)  # a brace too many


def test_inner_nodes_are_reported_first_with_their_places() -> None:
    seen: list[tuple[str, int, int, bool, str | None]] = []
    text = '{"a": ["", {"b": 2}], "c": [3'

    def on_close(node: Node, parent: Node | None) -> None:
        seen.append((node.kind, node.start, node.end, node.closed, parent.kind if parent else None))

    Reader(text, on_close, coord_token=COORD_TOKEN, stops=()).read(0)
    assert seen == [("{", 11, 19, True, "["), ("[", 6, 20, True, "{"), ("[", 27, 29, False, "{"), ("{", 0, 29, False, None)]
