"""The failure table and the log of phrases, by hand."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from coordvlm.metrics.failures import RELATION_WORDS, failure_table, failures_csv, failures_to_json, words_of
from coordvlm.metrics.phrase_log import COLUMNS, phrase_fields, phrases_csv
from coordvlm.metrics.phrases import outcomes
from tests.metrics.phrase_cases import answer, phrases

SMALL, LARGE = (10.0, 10.0, 30.0, 30.0), (0.0, 0.0, 180.0, 90.0)
WORDS = ("the leftmost red cup", "cup", "big plate next to the man's hand", "blue bird", "green bird, upper-left")


@pytest.fixture
def case():
    """Right; wrong box; "none" for something; unparsed; and a negative rejected."""
    gt = phrases(SMALL, LARGE, LARGE, SMALL, None, words=WORDS, source=[1, 1, 2, 3, 3])
    answers = [answer(1, SMALL), answer(2, SMALL, SMALL), answer(3, none=True), answer(4, dropped=["bad_json"], attempts=2),
               answer(5, none=True)]
    return gt, outcomes(gt, {a.sample_id: a for a in answers})


def table(case, **options):
    return {(row.group, row.bucket): row for row in failure_table(*case, **options)}


def test_every_phrase_with_a_target_is_counted_once_per_tiling(case):
    rows = table(case)
    assert (rows["all", "all"].phrases, rows["all", "all"].right, rows["all", "all"].acc_50) == (4, 1, 0.25)
    assert (rows["all", "all"].none, rows["all", "all"].unparsed) == (1, 1)
    for group in ("words in the phrase", "object size", "share of the image", "IoU"):
        assert sum(r.phrases for (g, _), r in rows.items() if g == group) == 4, group
        assert sum(r.right for (g, _), r in rows.items() if g == group) == 1, group


def test_buckets_by_hand(case):
    rows = table(case)
    assert {b: r.phrases for (g, b), r in rows.items() if g == "words in the phrase"} == {"1": 1, "2": 1, "4 – 5": 1, "6 – 8": 1}
    assert {b: r.phrases for (g, b), r in rows.items() if g == "object size"} == {"small, < 32² px": 2, "large, ≥ 96² px": 2}
    assert {b: r.phrases for (g, b), r in rows.items() if g == "share of the image"} == {"1 – 5 %": 2, "≥ 40 %": 2}
    assert {b: r.phrases for (g, b), r in rows.items() if g == "IoU"} == {"0": 2, "< 0.25": 1, "≥ 0.9": 1}
    relation = {b: (r.phrases, r.right) for (g, b), r in rows.items() if g == "relation"}
    assert relation == {"left": (1, 1), "next to, near": (1, 0), "size": (1, 0), "none of these": (2, 0)}
    found = {b: r.phrases for (g, b), r in rows.items() if g == "answer"}
    assert found == {"box": 2, "none": 1, "unparsed": 1, "more than one box": 1, "asked again": 1}


def test_a_phrase_without_a_target_is_right_when_rejected(case):
    row = table(case)["no target", "all"]
    assert (row.phrases, row.right, row.acc_50) == (1, 1, 1.0)
    assert math.isnan(row.iou_mean)


def test_kinds_are_named_where_the_data_name_them(case):
    rows = table(case, kinds={1: "relation", 2: "attribute", 3: "attribute"})
    assert {b: (r.phrases, r.right) for (g, b), r in rows.items() if g == "kind"} == {"attribute": (2, 0), "relation": (1, 1)}


@pytest.mark.parametrize(
    ("text", "words"),
    [("Upper-left cup!", ["upper", "left", "cup"]), ("man's hat", ["man's", "hat"]), ("", []), ("2nd from  left", ["2nd", "from", "left"]),
     ("ÉTÉ_bleu", ["été", "bleu"])],
)
def test_words(text, words):
    assert words_of(text) == words


def test_a_word_belongs_to_one_relation():
    listed = [word for words in RELATION_WORDS.values() for word in words.split()]
    assert len(listed) == len(set(listed))
    assert all(words_of(word) == [word] for word in listed)


def test_bright_is_not_right(case):
    gt = phrases(SMALL, words=["bright leftover"])
    rows = failure_table(gt, outcomes(gt, {}))
    assert [r.bucket for r in rows if r.group == "relation"] == ["none of these"]


def test_no_phrases():
    gt = phrases()
    assert failure_table(gt, outcomes(gt, {})) == []


def test_files_read_back(case):
    rows = failure_table(*case)
    text = json.dumps(failures_to_json(rows), allow_nan=False)
    assert json.loads(text)["rows"][0] == {"group": "all", "bucket": "all", "phrases": 4, "right": 1, "acc_50": 0.25,
                                           "iou_mean": pytest.approx((1 + 400 / 16200) / 4), "none": 1, "unparsed": 1}
    read = list(csv.DictReader(io.StringIO(failures_csv(rows))))
    assert len(read) == len(rows)
    assert read[-1]["iou_mean"] == ""


def test_the_log_of_phrases(case):
    gt, found = case
    rows = list(csv.DictReader(io.StringIO(phrases_csv(gt, found, {1: "relation"}))))
    assert tuple(rows[0]) == COLUMNS
    assert [r["phrase"] for r in rows] == list(WORDS)  # a comma in it survives
    assert (rows[0]["iou"], rows[0]["right_50"], rows[0]["status"]) == ("1", "1", "box")
    assert (rows[2]["status"], rows[2]["pred_x1"], rows[2]["true_x2"]) == ("none", "", "180")
    assert (rows[3]["status"], rows[3]["attempts"]) == ("unparsed", "2")
    assert (rows[4]["true_x1"], rows[4]["iou"], rows[4]["right_50"]) == ("", "", "")
    assert [r["extra_boxes"] for r in rows] == ["0", "1", "0", "0", "0"]
    assert [r["kind"] for r in rows] == ["relation", "", "", "", ""]
    fields = phrase_fields(gt, found)
    assert fields[5] == {"phrase": WORDS[4], "source_image": 3, "iou": None, "answer": "none"}
    assert fields[1]["iou"] == 1.0
