from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordvlm.contracts import Decoded, Prediction
from coordvlm.contracts.prediction import DROP_REASONS, KEPT
from coordvlm.coords.grid import Digits, Grid, to_px
from coordvlm.models.tiny import tiny_tokenizer
from coordvlm.models.tokens import add_coord_tokens, coord_vocab
from coordvlm.sequence.target import Target
from coordvlm.sequence.text_parser import TextParser
from coordvlm.sequence.text_target import JsonCoordTarget, JsonDigitsTarget, JsonUnitTarget, Qwen2BoxTarget
from coordvlm.utils.errors import ConfigError
from tests.sequence.texts import COORD_TOKEN, DESCS, FRAGMENTS, STYLES, wrap, write_one

MARKERS = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")
TOKENIZER = tiny_tokenizer(600)
add_coord_tokens(TOKENIZER, num_bins=1000, coord_token=COORD_TOKEN, markers=())
VOCAB = coord_vocab(TOKENIZER, num_bins=1000, coord_token=COORD_TOKEN, markers=())
K999 = Grid("k999", 1000, 999)
COORDS: dict[str, Grid | Digits] = {
    "json_coord": K999, "json_digits": Digits("pixel"), "qwen2_box": Digits("qwen1000"), "json_unit": Digits("unit"),
}  # fmt: skip
SIZE, MODEL_SIZE = (999, 1998), (1332, 2664)
END = "<|im_end|>"


def parser(style: str, score: str = "geom_desc", coords: Grid | Digits | None = None) -> TextParser:
    return TextParser(TOKENIZER, VOCAB, coords or COORDS[style], style=style, coord_token=COORD_TOKEN, score=score)


PARSERS = {style: parser(style) for style in STYLES}


def decoded(text_or_ids: str | list[int], *, seed: int = 0, truncated: bool | None = None) -> Decoded:
    """Every position with its own log-probability, mass and read-outs, so that a wrong position shows."""
    ids = TOKENIZER.encode(text_or_ids, add_special_tokens=False) if isinstance(text_or_ids, str) else text_or_ids
    rng, n = np.random.default_rng(seed), len(ids)
    at = np.asarray(ids, dtype=np.int64)
    return Decoded(
        sample_id=3,
        token_ids=at,
        logprob=-rng.uniform(0.01, 1, n).astype(np.float32),
        bin=VOCAB.bins(at),
        expectation=rng.uniform(0, 1, n).astype(np.float32),
        local=rng.uniform(0, 1, n).astype(np.float32),
        mass=rng.uniform(0, 1, n).astype(np.float32),
        truncated=VOCAB.end_id not in ids if truncated is None else truncated,
        seconds=0.25,
        model_size=MODEL_SIZE,
    )


def parse(style: str, text: str, **changes: Any) -> Prediction:
    return PARSERS[style].parse(decoded(text, **changes), size=SIZE, readout="argmax")


def numbers(style: str) -> tuple[float, ...]:
    return (0.01, 0.0202, 0.3, 0.4) if style == "json_unit" else (10, 20, 300, 400)


def target(style: str) -> Target:
    settings = {"order": "scan", "max_objects": 30, "on_too_many": "drop", "seed": 0}
    if style == "qwen2_box":
        marked = coord_vocab(TOKENIZER, num_bins=1000, coord_token=COORD_TOKEN, markers=MARKERS)
        return Qwen2BoxTarget(TOKENIZER, marked, COORDS[style], markers=MARKERS, **settings)
    kind = {"json_coord": JsonCoordTarget, "json_digits": JsonDigitsTarget, "json_unit": JsonUnitTarget}[style]
    return kind(TOKENIZER, VOCAB, COORDS[style], **settings)


TARGETS = {style: target(style) for style in STYLES}


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_the_writer_writes_is_read(style: str, data: st.DataObject) -> None:
    unit = st.floats(0, 0.9)
    corner = st.tuples(unit, unit, st.floats(0.01, 0.1), st.floats(0.01, 0.1))
    objects = data.draw(st.lists(st.tuples(DESCS, corner), max_size=4))
    coords = COORDS[style]
    boxes = [np.array([x, y, x + w, y + h]) for _, (x, y, w, h) in objects]
    written = [coords.encode_box(b) if isinstance(coords, Grid) else coords.encode_box(b, MODEL_SIZE) for b in boxes]
    text = TARGETS[style].write([d for d, _ in objects], np.array(written).reshape(-1, 4))
    p = PARSERS[style].parse(decoded(text + END), size=SIZE, readout="argmax")
    assert p.flags == frozenset()
    assert p.raw_text == text + END
    assert [(r.desc, r.status) for r in p.records] == [(d, "ok") for d, _ in objects]
    for r, numbers_4 in zip(p.records, written, strict=True):
        norm = coords.decode(numbers_4) if isinstance(coords, Grid) else coords.decode(numbers_4, MODEL_SIZE)
        np.testing.assert_allclose(r.box_xyxy_px, to_px(norm, *SIZE), rtol=1e-9)
    step = {"json_coord": 999, "json_digits": 1332, "qwen2_box": 1000, "json_unit": 10_000}[style]
    for r, box in zip(p.records, boxes, strict=True):
        assert (np.abs(np.asarray(r.box_xyxy_px) / np.tile(SIZE, 2) - box) <= 0.5 / step + 1e-9).all()


@pytest.mark.parametrize("style", STYLES)
def test_scores_come_from_the_tokens_of_each_part(style: str) -> None:
    desc, values = "犬, red circle", numbers(style)
    text = wrap(style, [write_one(style, "dog", values), write_one(style, desc, values)]) + END
    d = decoded(text)
    record = PARSERS[style].parse(d, size=SIZE, readout="argmax").records[1]
    ends = np.cumsum([len(TOKENIZER.convert_ids_to_tokens(int(t))) for t in d.token_ids])  # one character a byte
    starts = ends - [len(TOKENIZER.convert_ids_to_tokens(int(t))) for t in d.token_ids]

    def tokens(part: str, after: int) -> tuple[np.ndarray, int]:
        at = text.index(part, after)
        low, high = len(text[:at].encode()), len(text[: at + len(part)].encode())
        return np.flatnonzero((starts < high) & (ends > low)), at

    whole, begin = tokens(write_one(style, desc, values), 0)
    assert record.token_span == (whole[0], whole[-1] + 1)
    of_desc, _ = tokens(desc, begin)
    assert len(of_desc) > 4  # the kanji alone are three
    want_desc = math.exp(d.logprob[of_desc].mean())
    shown = [f"<|coord_{v}|>" if style == "json_coord" else f"{v:.4f}" if style == "json_unit" else str(v) for v in values]
    spans, after = [], begin
    for s in shown:
        found, at = tokens(s, after)
        spans.append(found)
        after = at + len(s)
    if style == "json_coord":
        assert all(len(s) == 1 for s in spans)
        want_geom = d.mass[np.ravel(spans)].mean()
    else:
        want_geom = np.mean([np.exp(d.logprob[s].sum()) for s in spans])
    assert record.score_parts == pytest.approx({"desc": want_desc, "geom": want_geom}, rel=1e-5)
    for name, want in {"geom_desc": want_desc * want_geom, "geom": want_geom, "desc": want_desc, "one": 1.0}.items():
        assert parser(style, name).parse(d, size=SIZE, readout="argmax").records[1].score == pytest.approx(want, rel=1e-5)


def test_coordinate_tokens_have_the_read_outs_of_their_step() -> None:
    d = decoded(wrap("json_coord", [write_one("json_coord", "dog", (10, 20, 300, 400))]) + END)
    at = np.flatnonzero(d.bin >= 0)
    d.expectation[at], d.local[at] = [0.1, 0.2, 0.3, 0.4], [0.11, 0.21, 0.31, 0.41]
    for readout, norm in (
        ("argmax", np.array([10, 20, 300, 400]) / 999), ("expectation", [0.1, 0.2, 0.3, 0.4]), ("local", [0.11, 0.21, 0.31, 0.41]),
    ):  # fmt: skip
        (r,) = PARSERS["json_coord"].parse(d, size=SIZE, readout=readout).records
        np.testing.assert_allclose(r.box_xyxy_px, to_px(norm, *SIZE), rtol=1e-6)
        np.testing.assert_allclose([getattr(s, readout) for s in r.slots], norm, rtol=1e-6)
        assert [s.bin for s in r.slots] == [10, 20, 300, 400]
    d.expectation[at[2]] = 0.05
    assert PARSERS["json_coord"].parse(d, size=SIZE, readout="expectation").records[0].status == "degenerate"


@pytest.mark.parametrize("readout", ["argmax", "expectation", "local"])
def test_digits_mean_what_is_written_by_every_read_out(readout: str) -> None:
    boxes = {"json_digits": (7.5, 15, 225, 300), "qwen2_box": (9.99, 39.96, 299.7, 799.2), "json_unit": (9.99, 40.3596, 299.7, 799.2)}
    for style, box in boxes.items():
        d = decoded(wrap(style, [write_one(style, "dog", numbers(style))]) + END)
        (r,) = PARSERS[style].parse(d, size=SIZE, readout=readout).records
        np.testing.assert_allclose(r.box_xyxy_px, box, rtol=1e-9)
        assert all(s.argmax == s.expectation == s.local for s in r.slots)
    assert [s.bin for s in r.slots] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("style", "values", "status"),
    [("json_digits", (0, 0, 1332, 2664), "ok"),
     ("json_digits", (0, 0, 1333, 2664), "out_of_range"),
     ("json_digits", (-1, 0, 10, 20), "out_of_range"),
     ("qwen2_box", (0, 0, 1000, 1000), "ok"),
     ("qwen2_box", (0, 0, 1001, 1000), "out_of_range"),
     ("json_unit", (0, 0, 1, 1), "ok"),
     ("json_unit", (0, 0, 1, 1.5), "out_of_range"),
     ("json_digits", (30, 20, 10, 40), "degenerate"),
     ("json_coord", (30, 20, 30, 40), "degenerate"),
     ("json_digits", (0, 0, 10**400, 9), "out_of_range")],
)  # fmt: skip
def test_range_and_area_by_the_convention(style: str, values: tuple[float, ...], status: str) -> None:
    good = write_one(style, "cow", numbers(style))
    bad = write_one(style, "dog", tuple(min(v, 7) for v in values)).replace("7", str(values[2])) if max(values) > 1e300 else None
    p = parse(style, wrap(style, [good, bad or write_one(style, "dog", values), good]) + END)
    assert [r.status for r in p.records] == ["ok", status, "ok"]
    assert (p.records[1].box_xyxy_px is None) == (bad is not None)


def test_coordinates_spelt_in_letters_are_no_coordinates() -> None:
    text = wrap("json_coord", [write_one("json_coord", "dog", (1, 2, 3, 4))])
    ids = [t for c in text for t in TOKENIZER.encode(c, add_special_tokens=False)]
    p = PARSERS["json_coord"].parse(decoded([*ids, VOCAB.end_id]), size=SIZE, readout="argmax")
    assert p.raw_text.startswith('{"objects": [{"desc": "dog", "bbox_2d": [<|coord_1|>')
    assert [(r.status, r.slots) for r in p.records] == [("not_a_coordinate", ())]
    digits = parse("json_coord", '{"objects": [{"desc": "dog", "bbox_2d": [1, 2, 3, 4]}]}' + END)
    assert [r.status for r in digits.records] == ["not_a_coordinate"]  # bins or pixels: it was not asked for


def test_flags_and_bookkeeping() -> None:
    text = wrap("json_digits", [write_one("json_digits", "dog", (1, 2, 3, 4))])
    p = parse("json_digits", text)
    assert (p.flags, p.sample_id, p.size) == ({"truncated"}, 3, SIZE)
    assert p.timing == {"seconds": 0.25, "new_tokens": float(len(p.token_ids))}
    assert parse("json_digits", text[:-1] + END).flags == frozenset()  # the model ended there itself
    assert parse("json_digits", "[" + END).flags == {"no_output"}
    assert parse("json_digits", "[]" + END).flags == frozenset()
    assert parse("qwen2_box", END).flags == frozenset()
    assert parse("qwen2_box", "").flags == {"truncated", "no_output"}
    assert parse("json_digits", "I see none." + END).flags == {"stray_text", "no_output"}


def test_a_record_without_a_description_may_be_sure_of_its_box() -> None:
    text = '{"x_min": 0.1000, "y_min": 0.2000, "x_max": 0.3000, "y_max": 0.4000}' + END
    (r,) = parse("json_unit", text).records
    assert (r.desc, r.status, r.score_parts["desc"]) == ("", "ok", 1.0)
    assert r.score == pytest.approx(r.score_parts["geom"])


def test_a_broken_byte_in_a_description_stays_readable() -> None:
    text = write_one("json_digits", "犬x", (1, 2, 3, 4))
    ids = TOKENIZER.encode(wrap("json_digits", [text]) + END, add_special_tokens=False)
    first = next(i for i, t in enumerate(ids) if TOKENIZER.decode([t]) == "\ufffd")
    p = PARSERS["json_digits"].parse(decoded([*ids[:first], *ids[first + 1 :]]), size=SIZE, readout="argmax")
    assert [(r.desc, r.status) for r in p.records] == [("\ufffd\ufffdx", "ok")]
    assert p.raw_text.encode()


PIECES = [f for f in FRAGMENTS if f != "\ud800"]  # no tokenizer takes half a character


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(PIECES) | st.integers(0, VOCAB.num_ids + 40), max_size=14), st.booleans())
def test_no_token_sequence_stops_the_parser(parts: list[str | int], truncated: bool) -> None:
    ids = [t for p in parts for t in ([p] if isinstance(p, int) else TOKENIZER.encode(p, add_special_tokens=False))]
    d = decoded(ids, truncated=truncated)
    for p in (one.parse(d, size=SIZE, readout="argmax") for one in PARSERS.values()):
        assert {r.status for r in p.records} <= set(KEPT + DROP_REASONS)
        assert ("truncated" in p.flags) == truncated
        for r in p.kept:
            x1, y1, x2, y2 = r.box_xyxy_px
            assert 0 <= x1 < x2 <= SIZE[0] * (1 + 1e-9)
            assert 0 <= y1 < y2 <= SIZE[1] * (1 + 1e-9)
            assert 0 <= r.token_span[0] < r.token_span[1] <= len(ids)
            assert 0 <= r.score <= 1 + 1e-6
            assert len(r.slots) == 4
            r.desc.encode()


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"decode\.score must be one of .*, got 'gemo'"):
        parser("json_coord", "gemo")
    with pytest.raises(ConfigError, match=r"sequence=json_coord writes coordinate tokens: .* got unit"):
        parser("json_coord", coords=Digits("unit"))
    with pytest.raises(ConfigError, match=r"sequence=qwen2_box writes digits: .* got k999"):
        parser("qwen2_box", coords=K999)
    with pytest.raises(ConfigError, match=r"decode\.readout must be one of .*, got 'mean'"):
        PARSERS["json_unit"].parse(decoded(""), size=SIZE, readout="mean")
