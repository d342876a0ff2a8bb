from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coordvlm.analysis.answers import Answers, condense, most_disputed, read_lines, scenes_of, truth_of
from coordvlm.utils.errors import DataError
from tests.analysis.factory import truth


def line(image: int = 1, **changes: object) -> dict[str, object]:
    """Two true boxes and a crowd; one match, one false positive, one dropped record."""
    record = {"desc": "cat", "status": "ok", "score": 0.9, "score_parts": {}, "point": None, "slots": [], "token_span": [0, 1]}
    return {
        "id": image, "size": [100, 50], "raw_text": "", "token_ids": [], "flags": [], "timing": {},
        "records": [{**record, "box": None, "status": "bad_arity"}, {**record, "box": [0, 0, 10, 10]}, {**record, "box": [60, 5, 80, 44]}],
        "truth": [
            {"ann_id": 7, "category": "cat", "box": [0, 0, 13, 14], "iscrowd": False},
            {"ann_id": 8, "category": "cat", "box": [30, 0, 40, 9], "iscrowd": False},
            {"ann_id": 9, "category": "dog", "box": [0, 0, 90, 40], "iscrowd": True},
        ],
        "matches": [{"pred_index": 0, "ann_id": 7, "iou": 0.55}], **changes,
    }


def test_scores_and_errors_by_hand() -> None:
    found = condense([line(5), line(2, records=[], truth=[], matches=[])], where="f")
    assert found.image_ids.tolist() == [2, 5]
    assert found.score.tolist() == pytest.approx([1.0, (2 * 1 / 4 + 0.55 / 2) / 2])
    assert found.px_error.tolist() == pytest.approx([0, 5])  # corners (0, 0) and (10, 10) against (13, 14)


def test_pixel_errors_are_those_of_the_metrics(sweep: Path) -> None:
    found = condense(read_lines(sweep / "hybrid_0" / "predictions.jsonl"), where="f")
    metrics = json.loads((sweep / "hybrid_0" / "metrics.json").read_text())["metrics"]
    assert found.px_error.mean() == pytest.approx(metrics["px_mean"]["value"])
    assert np.median(found.px_error) == pytest.approx(metrics["px_median"]["value"])


def test_the_truth_comes_back_from_the_predictions(sweep: Path) -> None:
    known, found = truth(40), truth_of(read_lines(sweep / "ce_1" / "predictions.jsonl"))
    assert found.image_ids.tolist() == known.image_ids.tolist()
    assert found.image_wh.tolist() == known.image_wh.tolist()
    order = np.argsort(known.ann_image_id, kind="stable")
    assert found.ann_xyxy_px.tolist() == known.ann_xyxy_px[order].tolist()
    names = dict(zip(known.category_ids.tolist(), known.category_names, strict=True))
    assert [found.category_names[i - 1] for i in found.ann_category_id] == [names[i] for i in known.ann_category_id[order].tolist()]


def test_scenes_are_drawn_from_lines_alone() -> None:
    scene = scenes_of([line(5)])[5]
    assert scene.true_names == ("cat", "cat")
    assert scene.crowds == 1
    assert len(scene.pred_xyxy_px) == 2
    assert scene.f1 == pytest.approx(0.5)


@pytest.mark.parametrize(
    "change", [{"matches": [{"pred_index": 9, "ann_id": 7, "iou": 1}]}, {"matches": [{"pred_index": 0}]}, {"truth": 3}]
)
def test_lines_that_do_not_fit_are_named(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"f, image 5: must hold records, truth and matches that fit"):
        condense([line(5, **change)], where="f")


@pytest.mark.parametrize(("text", "message"), [('{"id": 1}\n{', "f:2: must be JSON"), ("[1]", "f:1: must be a mapping with an id")])
def test_a_broken_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(DataError, match=message):
        read_lines(tmp_path / "f")


def test_disputed_images_are_those_where_recipes_and_not_seeds_differ() -> None:
    ids = np.arange(4)

    def runs(*scores: list[float]) -> list[Answers]:
        return [Answers(ids, np.array(s), np.zeros(0)) for s in scores]

    good = runs([0.9, 0.9, 1.0, 0.5], [0.9, 0.8, 0.0, 0.5])
    bad = runs([0.1, 0.6, 0.0, 0.5], [0.1, 0.5, 0.0, 0.5])
    found = most_disputed({"good": good, "bad": bad}, 3)
    assert [image for image, _, _ in found] == [0, 1]  # on image 2 the seeds of one group disagree, on image 3 nobody does
    assert found[0][1:] == (pytest.approx(0.8), {"good": pytest.approx(0.9), "bad": pytest.approx(0.1)})
