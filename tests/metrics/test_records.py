"""What is written can be read by any JSON reader, and back by us."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from coordvlm.contracts import Alternative, ArmAnswer, Prediction, Record, SlotReadout
from coordvlm.metrics.detection import DetectionMetric
from coordvlm.metrics.protocol import protocol_hash
from coordvlm.metrics.records import TruthIndex, clip_fields, evaluation_to_json, line_to_prediction, prediction_to_line
from tests.metrics.cases import predicted, truth
from tests.metrics.clip_cases import clips

A, B = (0.0, 0.0, 50.0, 50.0), (60.0, 10.0, 90.0, 80.0)
SLOTS = tuple(SlotReadout(k, k / 999, k / 998, k / 997) for k in (1, 2, 3, 4))
PREDICTION = Prediction(
    2, (200, 100),
    (
        Record("cat", A, 0.25, "ok", {"geom": 0.5, "desc": 0.5}, SLOTS, (0, 6)),
        Record("</script>é", None, 0.0, "bad_arity", {"geom": float("nan")}, SLOTS[:1], (6, 9)),
        Record("dog", B, 0.75, "repaired", point_px=(1.5, 2.5)),
    ),
    "raw \u2028 text", (5, 6, 7), frozenset({"truncated", "stray_text"}), {"seconds": 0.5, "new_tokens": 3.0},
)


def evaluation(gt, *predictions):
    metric = DetectionMetric(backend="faster", num_replicates=10, seed=0, casefold=False, truth=gt)
    metric.update(predictions)
    return metric.compute()


def strict(value):
    return json.loads(json.dumps(value, allow_nan=False))


def test_a_prediction_survives_the_line():
    line = strict(prediction_to_line(PREDICTION, TruthIndex(truth(images=(2,)))))
    back = line_to_prediction(line)
    assert math.isnan(back.records[1].score_parts["geom"])
    assert back.records[0] == PREDICTION.records[0]
    assert back.records[2] == PREDICTION.records[2]
    assert back.records[1].box_xyxy_px is None
    for name in ("sample_id", "size", "raw_text", "token_ids", "flags", "timing"):
        assert getattr(back, name) == getattr(PREDICTION, name), name
    assert strict(prediction_to_line(back, TruthIndex(truth(images=(2,))))) == line


def test_the_other_answers_to_a_phrase_survive_the_line():
    answers = (Alternative(None, 0.0, True), Alternative(A, 0.25, False), Alternative(None, 0.0, False))
    several = replace(PREDICTION, alternatives=answers)
    line = strict(prediction_to_line(several, TruthIndex(truth(images=(2,)))))
    assert line_to_prediction(line).alternatives == answers
    alone = strict(prediction_to_line(PREDICTION, TruthIndex(truth(images=(2,)))))
    assert "alternatives" not in alone  # as files of before have it
    assert line_to_prediction(alone).alternatives == ()


def test_answers_of_all_arms_survive_the_line():
    arms = (
        ArmAnswer("coarse", "a \u2028 </script>", None, 1.25, 3, 2), ArmAnswer("fine", "", (1.5, 2.25), 0.5, 3, 3, finished=False),
        ArmAnswer("swap", "word", None, float("nan"), 3, 0),
    )
    index = TruthIndex(truth(images=(2,)))
    line = strict(prediction_to_line(replace(PREDICTION, arms=arms), index))
    back = line_to_prediction(line).arms
    assert back[:2] == arms[:2]
    assert math.isnan(back[2].nll)
    assert replace(back[2], nll=0.0) == replace(arms[2], nll=0.0)
    assert "arms" not in prediction_to_line(PREDICTION, index)  # as files of other tasks have it
    with pytest.raises(KeyError, match="num_tokens"):
        line_to_prediction({**line, "arms": [{"arm": "fine", "text": "", "point": None, "nll": 0.0}]})


def test_a_clip_says_what_was_asked_and_what_is_right():
    known = clips("red", (5.0, 6.0), kinds=["qa", "ball"], source=[7, 7])
    assert clip_fields(known) == {
        1: {"question": "question 1", "answer": "red", "kind": "qa", "source_clip": 7},
        2: {"question": "question 2", "answer": "", "kind": "ball", "source_clip": 7},
    }
    assert TruthIndex(known).truth(2)[0]["box"] == [5.0, 6.0, 5.0, 6.0]
    assert TruthIndex(known).truth(1) == []


def test_a_line_tells_truth_and_matches():
    gt = truth((1, "cat", B), (2, "cat", A), (2, "dog", B), images=(1, 2), crowds=[2])
    found = evaluation(gt, PREDICTION)
    line = strict(prediction_to_line(PREDICTION, TruthIndex(gt, found.pairs), prompt="Find <all>.", sha1="ab12"))
    assert (line["prompt"], line["sha1"], line["size"]) == ("Find <all>.", "ab12", [200, 100])
    assert line["truth"] == [
        {"ann_id": 1, "category": "cat", "box": list(A), "iscrowd": False},
        {"ann_id": 2, "category": "dog", "box": list(B), "iscrowd": True},
    ]
    assert line["matches"] == [{"pred_index": 0, "ann_id": 1, "iou": 1.0}]
    assert prediction_to_line(predicted(9), TruthIndex(gt, found.pairs))["truth"] == []


def test_metrics_json_has_the_agreed_shape():
    gt = truth((1, "cat", A), images=(1, 2))
    found = evaluation(gt, predicted(1, ("cat", A, 0.9)))
    data = strict(evaluation_to_json(found, split="val", protocol="0123456789ab", timing={"decode": 1.5}))
    assert {"split", "protocol", "metrics", "counts", "timing"} <= set(data)
    assert data["metrics"]["F1_50"]["value"] == 1.0
    assert set(data["metrics"]["AP"]) == {"value", "low", "high"}
    assert data["metrics"]["AP_large"] == {"value": None, "low": None, "high": None}
    assert data["per_class"]["dog"] == {"AP": None, "AP50": None, "num_true": 0.0}
    assert data["counts"]["images"] == 2
    assert data["timing"] == {"decode": 1.5}


PROTOCOL = {"data": "ab", "split": "val", "image_limits": [1, 2], "grammar": False, "readout": "argmax", "max_new_tokens": 99,
            "score": "geom*desc", "backend": "faster"}


def test_the_protocol_hash_is_of_content_not_of_order():
    assert protocol_hash(PROTOCOL) == protocol_hash(dict(reversed(PROTOCOL.items())))
    assert len(protocol_hash(PROTOCOL)) == 12
    for key in PROTOCOL:
        assert protocol_hash(PROTOCOL | {key: "other"}) != protocol_hash(PROTOCOL), key
    assert protocol_hash(PROTOCOL | {"more": 1}) != protocol_hash(PROTOCOL)


def test_an_incomplete_or_unwritable_protocol_is_refused():
    with pytest.raises(ValueError, match="lacks backend"):
        protocol_hash({k: v for k, v in PROTOCOL.items() if k != "backend"})
    with pytest.raises(ValueError, match="plain JSON"):
        protocol_hash(PROTOCOL | {"score": {1, 2}})
    with pytest.raises(ValueError, match="JSON"):
        protocol_hash(PROTOCOL | {"score": float("nan")})
