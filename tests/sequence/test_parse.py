from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordvlm.contracts import Decoded, Prediction, Record
from coordvlm.contracts.prediction import DROP_REASONS, KEPT
from coordvlm.sequence.parse import ObjectsParser
from coordvlm.utils.errors import ConfigError
from tests.tiny import MARKERS, random_sample, tiny

T = tiny()
SIZE = (999, 1998)  # one bin is one pixel wide and two high
GOOD = "<obj_start>dog<|coord_10|><|coord_20|><|coord_30|><|coord_40|><obj_end>"
END = "<|im_end|>"


def parser(score: str = "geom_desc") -> ObjectsParser:
    return ObjectsParser(T.tokenizer, T.vocab, T.grid, start=MARKERS[0], end=MARKERS[1], score=score)


def decoded(text_or_ids: str | list[int], *, truncated: bool | None = None, **changes: object) -> Decoded:
    """Every token with log-probability -0.1, mass 0.5 and read-outs exactly at the bin."""
    ids = np.asarray(T.tokenizer(text_or_ids, add_special_tokens=False)["input_ids"] if isinstance(text_or_ids, str) else text_or_ids)
    ids = ids.astype(np.int64)
    bins = T.vocab.bins(ids)
    values = (np.maximum(bins, 0) / 999).astype(np.float32)
    fields = {
        "logprob": np.full(len(ids), -0.1, np.float32), "bin": bins, "expectation": values, "local": values.copy(),
        "mass": np.full(len(ids), 0.5, np.float32), "truncated": T.vocab.end_id not in ids if truncated is None else truncated, **changes,
    }  # fmt: skip
    return Decoded(sample_id=3, token_ids=ids, seconds=0.25, **fields)


def parse(text: str, *, readout: str = "argmax", score: str = "geom_desc", **changes: object) -> Prediction:
    return parser(score).parse(decoded(text, **changes), size=SIZE, readout=readout)


def coords(*bins: int) -> str:
    return "".join(f"<|coord_{k}|>" for k in bins)


def test_a_whole_answer() -> None:
    text = GOOD + GOOD.replace("dog", "red circle") + END
    p = parse(text)
    assert [(r.desc, r.status, r.kept) for r in p.records] == [("dog", "ok", True), ("red circle", "ok", True)]
    np.testing.assert_allclose(p.records[0].box_xyxy_px, (10, 40, 30, 80))
    assert p.flags == frozenset()
    assert (p.raw_text, p.sample_id, p.size) == (text, 3, SIZE)
    assert p.timing == {"seconds": 0.25, "new_tokens": len(p.token_ids)}
    assert p.records[0].token_span[1] == p.records[1].token_span[0]


RECORDS = {
    "ok": GOOD,
    "repaired": GOOD.removesuffix("<obj_end>"),
    "bad_arity: three": f"<obj_start>cat{coords(1, 2, 3)}<obj_end>",
    "bad_arity: five": f"<obj_start>cat{coords(1, 2, 3, 4, 5)}<obj_end>",
    "bad_arity: none": "<obj_start>cat<obj_end>",
    "bad_arity: empty": "<obj_start><obj_end>",
    "bad_arity: cut": f"<obj_start>cat{coords(1, 2, 3)}",
    "not_a_coordinate: between": f"<obj_start>cat{coords(1, 2)} and {coords(3, 4)}<obj_end>",
    "not_a_coordinate: after": f"<obj_start>cat{coords(1, 2, 3, 4)}.<obj_end>",
    "missing_desc": f"<obj_start>{coords(1, 2, 3, 4)}<obj_end>",
    "missing_desc: blank": f"<obj_start> \n{coords(1, 2, 3, 4)}<obj_end>",
    "degenerate: no width": f"<obj_start>cat{coords(5, 2, 5, 4)}<obj_end>",
    "degenerate: crossed": f"<obj_start>cat{coords(5, 9, 7, 4)}<obj_end>",
    "degenerate: unclosed": f"<obj_start>cat{coords(5, 9, 7, 4)}",
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_has_its_status_and_leaves_its_neighbours(case: str) -> None:
    status = case.split(":")[0]
    p = parse(GOOD + RECORDS[case] + GOOD.replace("dog", "cow") + END)
    assert [r.status for r in p.records] == ["ok", status, "ok"]
    assert [r.desc for r in p.records][::2] == ["dog", "cow"]
    for r in p.records[::2]:
        np.testing.assert_allclose(r.box_xyxy_px, (10, 40, 30, 80))
    assert p.flags == frozenset()
    assert status in KEPT + DROP_REASONS
    assert len(p.kept) == (3 if status in KEPT else 2)
    last = parse(GOOD + RECORDS[case] + END)
    assert [r.status for r in last.records] == ["ok", status]


@pytest.mark.parametrize(
    ("text", "flags", "statuses"),
    [(END, set(), []),
     ("", {"truncated", "no_output"}, []),
     ("I see a dog." + END, {"stray_text", "no_output"}, []),
     ("I see a dog.", {"stray_text", "no_output", "truncated"}, []),
     (coords(1, 2, 3, 4) + END, {"stray_text", "no_output"}, []),
     (GOOD + ", " + GOOD + END, {"stray_text"}, ["ok", "ok"]),
     ("<obj_end>" + GOOD + END, {"stray_text"}, ["ok"]),
     (GOOD + GOOD.removesuffix("<|coord_40|><obj_end>"), {"truncated"}, ["ok", "bad_arity"]),
     (GOOD.removesuffix("<obj_end>"), {"truncated"}, ["repaired"]),
     ("<obj_start>dog", {"truncated"}, ["bad_arity"])],
)  # fmt: skip
def test_flags_of_an_answer(text: str, flags: set[str], statuses: list[str]) -> None:
    p = parse(text)
    assert p.flags == flags
    assert [r.status for r in p.records] == statuses


def slots_of(r: Record, name: str) -> list[float]:
    return [getattr(s, name) for s in r.slots]


def test_one_decode_gives_every_read_out() -> None:
    d = decoded(GOOD + END)
    at = d.bin >= 0
    d.expectation[at], d.local[at] = [0.1, 0.2, 0.3, 0.4], [0.11, 0.21, 0.31, 0.41]
    boxes = {name: parser().parse(d, size=(100, 200), readout=name).records[0] for name in ("argmax", "expectation", "local")}
    np.testing.assert_allclose(boxes["expectation"].box_xyxy_px, (10, 40, 30, 80), rtol=1e-6)
    np.testing.assert_allclose(boxes["local"].box_xyxy_px, (11, 42, 31, 82), rtol=1e-6)
    np.testing.assert_allclose(boxes["argmax"].box_xyxy_px, np.array([10, 40, 30, 80]) * 100 / 999, rtol=1e-6)
    for r in boxes.values():
        assert [s.bin for s in r.slots] == [10, 20, 30, 40]
        np.testing.assert_allclose(slots_of(r, "argmax"), np.array([10, 20, 30, 40]) / 999)
        np.testing.assert_allclose(slots_of(r, "local"), [0.11, 0.21, 0.31, 0.41], rtol=1e-6)


def test_a_box_may_be_degenerate_by_one_read_out_only() -> None:
    d = decoded(GOOD + END)
    d.expectation[d.bin >= 0] = [0.3, 0.2, 0.3, 0.4]
    assert parser().parse(d, size=SIZE, readout="expectation").records[0].status == "degenerate"
    assert parser().parse(d, size=SIZE, readout="argmax").records[0].status == "ok"


def test_a_box_that_is_no_number_is_not_kept() -> None:
    d = decoded(GOOD + END)
    d.expectation[d.bin >= 0] = [0.1, np.nan, 0.3, 0.4]
    assert not parser().parse(d, size=SIZE, readout="expectation").records[0].kept


def test_scores_by_hand() -> None:
    d = decoded("<obj_start>red circle" + coords(1, 2, 3, 4) + "<obj_end>" + END)
    first = int(np.flatnonzero(d.bin >= 0)[0])
    d.logprob[1:first] = -np.linspace(0.1, 0.5, first - 1)
    d.mass[first : first + 4] = [0.2, 0.4, 0.6, 1.0]
    want = {"geom": 0.55, "desc": math.exp(-0.3), "geom_desc": 0.55 * math.exp(-0.3), "one": 1.0}
    for name, value in want.items():
        r = parser(name).parse(d, size=SIZE, readout="argmax").records[0]
        assert r.score == pytest.approx(value, rel=1e-6)
        assert r.score_parts == pytest.approx({"geom": 0.55, "desc": math.exp(-0.3)}, rel=1e-6)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"decode\.score must be one of geom_desc, geom, desc, one, got 'gemo'"):
        parser("gemo")
    with pytest.raises(ConfigError, match=r"decode\.readout must be one of argmax, expectation, local, got 'mean'"):
        parse(GOOD, readout="mean")


SPECIAL = st.sampled_from([*T.vocab.marker_ids.values(), T.vocab.end_id, *T.vocab.coord_ids[[0, 1, 500, 999]].tolist()])


@settings(max_examples=200, deadline=None)
@given(st.lists(SPECIAL | st.integers(0, T.vocab.num_ids - 1), max_size=40), st.booleans())
def test_no_token_sequence_stops_the_parser_and_records_never_overlap(ids: list[int], truncated: bool) -> None:
    p = parser().parse(decoded(ids, truncated=truncated), size=SIZE, readout="argmax")
    spans = [(0, 0), *(r.token_span for r in p.records)]
    assert all(a[1] <= b[0] < b[1] <= len(ids) for a, b in itertools.pairwise(spans))
    assert len(p.records) == ids.count(T.vocab.marker_ids[MARKERS[0]])
    assert {r.status for r in p.records} <= set(KEPT + DROP_REASONS)
    for r in p.kept:
        x1, y1, x2, y2 = r.box_xyxy_px
        assert 0 <= x1 < x2 <= SIZE[0]
        assert 0 <= y1 < y2 <= SIZE[1]
        assert r.desc
    assert ("truncated" in p.flags) == truncated


@pytest.mark.parametrize("seed", range(5))
def test_the_truth_written_and_read_comes_back_within_half_a_bin(seed: int) -> None:
    sample = random_sample(seed, 9, (640, 480))
    answer = T.encoder.target.build(sample, epoch=0)
    p = parser().parse(decoded(answer.ids.tolist()), size=(640, 480), readout="argmax")
    assert [r.status for r in p.records] == ["ok"] * 9
    assert p.flags == frozenset()
    assert [r.desc for r in p.records] == [o.desc for o in answer.objects]
    half_bin = np.tile([640, 480], 2) * 0.5 / 999 + 1e-9
    for r, o in zip(p.records, answer.objects, strict=True):
        assert (np.abs(np.subtract(r.box_xyxy_px, o.box_xyxy_px)) <= half_bin).all()
