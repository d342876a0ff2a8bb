"""Answers as text for the tests of the text formats: how each style is written, and strings that try to break a reader."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import strategies as st

COORD_TOKEN = "<|coord_{k}|>"
STYLES = ("json_coord", "json_digits", "qwen2_box", "json_unit")
Values = tuple[float, float, float, float]


def coords(values: Sequence[float]) -> str:
    return ", ".join(f"<|coord_{int(k)}|>" for k in values)


def write_one(style: str, desc: str, values: Sequence[float]) -> str:
    quoted = json.dumps(desc, ensure_ascii=False)
    if style == "json_coord":
        return f'{{"desc": {quoted}, "bbox_2d": [{coords(values)}]}}'
    if style == "json_digits":
        return f'{{"bbox_2d": [{", ".join(str(int(v)) for v in values)}], "label": {quoted}}}'
    if style == "json_unit":
        numbers = ", ".join(f'"{k}": {v:.4f}' for k, v in zip(("x_min", "y_min", "x_max", "y_max"), values, strict=True))
        return f'{{"label": {quoted}, {numbers}}}'
    x1, y1, x2, y2 = (int(v) for v in values)
    return f"<|object_ref_start|>{desc}<|object_ref_end|><|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def wrap(style: str, records: Sequence[str]) -> str:
    opening, between, closing = {"json_coord": ('{"objects": [', ", ", "]}"), "qwen2_box": ("", "", "")}.get(style, ("[", ", ", "]"))
    return opening + between.join(records) + closing


def write(style: str, objects: Sequence[tuple[str, Values]]) -> str:
    return wrap(style, [write_one(style, d, v) for d, v in objects])


def values_of(style: str) -> st.SearchStrategy[Values]:
    """Four numbers as the style writes them; a box or not."""
    one = st.integers(0, 10_000).map(lambda k: k / 10_000) if style == "json_unit" else st.integers(0, 999).map(float)
    return st.tuples(one, one, one, one)


NASTY = (
    '"', "\\", '\\"', "'", ",", "]", "}", "{", "[", ":", "(1,2)", "(1,2),(3,4)", '"bbox_2d"', '"bbox_2d": [1, 2, 3, 4]', "'label':", "\n",
    '"}, {"desc": "', "```", "```json", "<", "</think", "NaN", "null", "“", "”", "é", "犬", "\U0001f469\u200d\U0001f467", "\u2028", "\x00",
    "\x7f", " ", "\t", "%", "10, 20", "<box>", "<point x=1>", "<loc0001>", "</ref>", "\\u0041", "\ufeff", "\ufffd",
)  # fmt: skip
#: Descriptions that are allowed in targets: not empty, no control or marker token.
DESCS = (
    st.lists(st.sampled_from(NASTY) | st.text(max_size=6) | st.sampled_from(["dog", "red car", " a"]), min_size=1, max_size=6)
    .map("".join)
    .map(str.strip)
    .filter(lambda d: bool(d) and "<|" not in d)
)
FRAGMENTS = (
    *NASTY, "<think>", "</think>", "<answer>", "</answer>", "<|im_end|>", "<|endoftext|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<ref>", "<box>", "</box>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|coord_5|>",
    "<|coord_1000|>", "<|coord_", "<12>", "<loc0256>", '<points x1="1" y1="2.5" alt="a">', '"label"', '"desc": ', '"names": {"en": ',
    '"point_2d": [', '"x_min": 0.1', '"y_max": ', '{"bbox_2d": [', "[1, 2, 3, 4]", "(904, 196)", "1e999", "-", "0x1F", "476_496", "9" * 40,
    "1.", ".5", "\ud800", '{"objects": [', "cat", " dog's ", "…",
    *(write_one(s, "cat", (0.1, 0.2, 0.3, 0.4) if s == "json_unit" else (10, 20, 30, 40)) for s in STYLES),
)  # fmt: skip
