"""The answer to a phrase, in every format: written without a description, read back, and `none`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coordvlm.contracts import COORD, TARGET, Decoded, Object, Prediction, Sample
from coordvlm.coords.grid import Grid
from coordvlm.sequence.parse import ObjectsParser
from coordvlm.sequence.target import ObjectsTarget, Target
from coordvlm.sequence.text_parser import TextParser
from tests.sequence.test_text_target import ALL

MARKERS = ("<obj_start>", "<obj_end>")
BOX = (20.0, 10.0, 120.0, 90.0)
SIZE, SEEN = (200, 100), (420, 210)
TEXTS = {
    "objects": "<obj_start><|coord_100|><|coord_100|><|coord_599|><|coord_899|><obj_end>",
    "json_coord": '{"objects": [{"bbox_2d": [<|coord_100|>, <|coord_100|>, <|coord_599|>, <|coord_899|>]}]}',
    "json_digits": '[{"bbox_2d": [100, 100, 600, 900]}]',
    "json_digits_pixel": '[{"bbox_2d": [42, 21, 252, 189]}]',
    "json_unit": '{"x_min": 0.1000, "y_min": 0.1000, "x_max": 0.6000, "y_max": 0.9000}',
    "qwen2_box": "<|box_start|>(100,100),(600,900)<|box_end|>",
}


def build(name: str) -> Target:
    if name == "objects":
        from coordvlm.models.tiny import tiny_tokenizer
        from coordvlm.models.tokens import add_coord_tokens, coord_vocab

        tokenizer = tiny_tokenizer(600)
        add_coord_tokens(tokenizer, num_bins=1000, coord_token="<|coord_{k}|>", markers=MARKERS)
        vocab = coord_vocab(tokenizer, num_bins=1000, coord_token="<|coord_{k}|>", markers=MARKERS)
        settings = {"order": "scan", "max_objects": 30, "on_too_many": "drop", "seed": 0}
        return ObjectsTarget(tokenizer, vocab, Grid("k999", 1000, 999), start=MARKERS[0], end=MARKERS[1], **settings)
    return ALL[name]()


TARGETS = {name: build(name) for name in TEXTS}


def sample(phrase: str | None = "the red one", *boxes: tuple[float, float, float, float]) -> Sample:
    return Sample(7, Path("unused"), *SIZE, tuple(Object(TARGET, b, category_id=1, annotation_id=7) for b in boxes), phrase=phrase)


def read(name: str, ids: np.ndarray, phrase: str | None = "the red one") -> Prediction:
    target = TARGETS[name]
    bins = target.vocab.bins(ids)
    values = np.maximum(bins, 0).astype(np.float32) / 999
    ones = np.ones(len(ids), dtype=np.float32)
    decoded = Decoded(7, ids, -ones, bins, values, values, ones, truncated=False, seconds=0.0, model_size=SEEN)
    if name == "objects":
        parser = ObjectsParser(target.tokenizer, target.vocab, target.coords, start=MARKERS[0], end=MARKERS[1], score="geom_desc")
    else:
        style = name.removesuffix("_pixel")
        parser = TextParser(target.tokenizer, target.vocab, target.coords, style=style, coord_token="<|coord_{k}|>", score="geom_desc")
    return parser.parse(decoded, size=SIZE, readout="argmax", phrase=phrase)


@pytest.mark.parametrize("name", TEXTS)
def test_the_box_is_written_without_a_description_and_read_back(name: str) -> None:
    target = TARGETS[name]
    answer = target.build(sample("the red one", BOX), epoch=0, model_size=SEEN)
    assert target.text(answer).removesuffix("<|im_end|>") == TEXTS[name]
    (record,) = read(name, answer.ids).records
    assert (record.desc, record.status) == (TARGET, "ok")
    np.testing.assert_allclose(record.box_xyxy_px, BOX, atol=0.5)
    assert record.score_parts["desc"] == 1.0, "no description was asked for"
    assert (np.flatnonzero(answer.kind == COORD) == target.index_target(answer.ids)["slot_pos"]).all()


@pytest.mark.parametrize("name", TEXTS)
def test_a_phrase_that_names_nothing_is_answered_by_none(name: str) -> None:
    target = TARGETS[name]
    answer = target.build(sample(), epoch=0, model_size=SEEN)
    assert target.text(answer) == "none<|im_end|>"
    found = read(name, answer.ids)
    assert (found.records, found.flags) == ((), {"says_none"})


@pytest.mark.parametrize("name", TEXTS)
def test_in_detection_nothing_changes(name: str) -> None:
    answer = TARGETS[name].build(sample("x", BOX), epoch=0, model_size=SEEN)
    (record,) = read(name, answer.ids, phrase=None).records
    assert record.status == ("ok" if name == "json_unit" else "missing_desc")
    assert "none" not in TARGETS[name].text(TARGETS[name].build(sample(None), epoch=0, model_size=SEEN))


@pytest.mark.parametrize("name", ["json_coord", "json_digits", "qwen2_box", "objects"])
def test_a_description_that_a_model_writes_all_the_same_is_read_over(name: str) -> None:
    target = TARGETS[name]
    ids = target.build(Sample(7, Path("unused"), *SIZE, (Object("a cat", BOX),)), epoch=0, model_size=SEEN).ids
    (record,) = read(name, ids).records
    assert (record.desc, record.status) == (TARGET, "ok")


def test_a_phrase_names_one_thing() -> None:
    with pytest.raises(AssertionError, match="one thing"):
        TARGETS["objects"].build(sample("two cats", BOX, (0.0, 0.0, 9.0, 9.0)), epoch=0)
