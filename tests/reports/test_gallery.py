"""Which images are shown, and what their captions count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coordvlm.contracts import MatchedPairs, Prediction, Record
from coordvlm.reports.gallery import choose, scenes
from coordvlm.reports.run_report import RunSummary
from tests.reports.conftest import NAMES, make_run, make_truth


def test_f1_and_iou_of_an_image_by_hand() -> None:
    truth = make_truth(2, np.array([[0, 0, 10, 10], [20, 20, 40, 40.0]]), [1, 1], [0, 1])
    records = (
        Record(NAMES[0].upper() + " ", (0, 0, 10, 5), 0.9, "ok"), Record(NAMES[0], (20, 20, 40, 40), 0.8, "ok"),
        Record("x", None, 0.1, "bad_json"),
    )
    box = np.zeros((1, 4))
    pairs = MatchedPairs(np.array([1]), np.array([0]), np.array([1]), np.array([0.5]), box, box)
    first, second = scenes(truth, [Prediction("2", (96, 96), ()), Prediction(1, (96, 96), records), Prediction("x7", (1, 1), ())], pairs)
    assert first.best_iou.tolist() == [0.5, 0.0]  # the second true box has an exact prediction of another class
    assert first.pred_iou.tolist() == [0.5, 0.0]
    assert first.f1 == pytest.approx(2 * 1 / (2 + 2))
    assert first.mean_iou == 0.25
    assert second.image_id == 2
    assert second.f1 == 1.0  # nothing to find, nothing found
    assert math.isnan(second.mean_iou)


def test_groups_do_not_overlap_and_are_ranked() -> None:
    run = make_run(60)
    assert run.truth is not None
    assert run.evaluation is not None
    items = scenes(run.truth, run.predictions, run.evaluation.pairs)
    groups = choose(items)
    shown = [s.image_id for group in groups.values() for s in group]
    assert {name: len(group) for name, group in groups.items()} == {"best": 8, "worst": 8, "random": 8}
    assert len(set(shown)) == 24
    others = [s.rank for s in items if s.image_id not in {x.image_id for g in ("best", "worst") for x in groups[g]}]
    assert min(s.rank for s in groups["best"]) >= max(others)
    assert max(s.rank for s in groups["worst"]) <= min(others)
    assert [s.image_id for s in choose(items)["random"]] == [s.image_id for s in groups["random"]]


def test_few_images_are_shared_out(run: RunSummary) -> None:
    assert run.truth is not None
    items = scenes(run.truth, run.predictions, None)
    assert all(math.isnan(s.f1) for s in items)
    assert [len(g) for g in choose(items[:4]).values()] == [2, 2, 0]
    assert [len(g) for g in choose([]).values()] == [0, 0, 0]
