"""Runs of counting are compared by pck384_5, over source images, whatever head their recipe reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordvlm.analysis.answers import condense, read_lines, scenes_of, truth_of
from coordvlm.analysis.compare import Question, _any_unmarked, _metrics, compare
from coordvlm.analysis.groups import require_one_protocol
from coordvlm.analysis.rescore import rescore
from coordvlm.analysis.runs import Run, read_runs
from coordvlm.callbacks.evaluation_writer import readout_table, write_evaluation
from coordvlm.contracts import PointTruth, Prediction
from coordvlm.metrics.counting import CountingMetric
from coordvlm.metrics.protocol import protocol_hash
from coordvlm.reports.compare_page import write_comparison
from coordvlm.reports.compare_words import verdict
from coordvlm.utils.errors import ConfigError, DataError
from tests.analysis.factory import edit, write_run
from tests.reports.counts import answers, dots, draw
from tests.reports.html_check import read

QUESTION = Question(
    metric=None, metrics=["AP", "acc_50", "pck384_5", "done_acc", "count_mae", "px_median"], verdict_metrics=["done_acc", "count_mae"],
    baseline=None, ignore=(), coverage=0.95, power=0.8, level_shares=[0.5], num_snapshots=2, num_pictures=2,
)
TRUTH = dots(40)
#: recipe -> noise of its answers in px, share of wrong done, what it is read by
RECIPES = {"loss=hybrid": (0.6, 0.02, "spatial"), "loss=ce": (6.0, 0.2, "heads")}


def write(folder: Path, recipe: str, seed: int) -> Path:
    """The folder of a finished run whose evaluation is of counting."""
    noise, wrong, readout = RECIPES[recipe]
    write_run(folder, recipe, seed=seed, images=4, replicates=2)
    predictions = answers(TRUTH, noise_px=noise, wrong_done=wrong, seed=seed)
    metric = CountingMetric(num_replicates=100, seed=0, tolerance_px=5.0, any_unmarked=False, truth=TRUTH)
    metric.update(predictions)
    found = metric.compute()
    values = {"data": TRUTH.digest(), "split": "test", "image_limits": {}, "backend": "none", "grammar": False, "readout": readout,
              "max_new_tokens": 1, "score": "one"}
    write_evaluation(
        folder, found, predictions, TRUTH, split="test", protocol={**values, "hash": protocol_hash(values)}, selected_on="val", timing={},
        readouts=readout_table({readout: found}), seed=0, prompt=lambda _: "Count.", sha1=lambda _: None,
    )
    edit(folder, "run.json", protocol=protocol_hash(values))
    log = (folder / "log.csv").read_text().replace("val/AP", "val/pck384_5")
    (folder / "log.csv").write_text(log)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("counts")
    found, rest = read_runs([write(root / f"{recipe[5:]}_{seed}", recipe, seed) for recipe in RECIPES for seed in range(3)])
    assert not rest
    return found


def lines(run: Run) -> list[dict[str, object]]:
    return read_lines(run.predictions_file)


def test_pck_on_384_decides_and_the_page_says_what_was_counted(runs: Sequence[Run], tmp_path: Path) -> None:
    require_one_protocol(runs)
    found = compare(runs, [], QUESTION, lines)
    assert (found.metric, found.curve, found.counting) == ("pck384_5", "val/pck384_5", True)
    assert found.metrics == ["pck384_5", "done_acc", "count_mae", "px_median"]
    assert found.num_images == 20  # two samples of each image
    assert (found.readout, found.protocol_hash) == ("heads, spatial", "")
    words = verdict(found, found.of("pck384_5")[0])
    assert words.startswith("hybrid beats ce by ")
    assert "done accuracy" in words
    group = next(g for g in found.groups if g.short == "hybrid")
    assert group.statuses["images"] == 3 * 40
    assert group.statuses["records"] == group.statuses["status_ok"] + group.statuses["status_repeated"]
    assert len(group.px_error) == 3 * sum(len(a.asked) - 1 for a in answers(TRUTH, noise_px=1.0))
    page = write_comparison(tmp_path / "compare.html", replace(found, load_image=lambda i: draw(TRUTH, i)))
    text = " ".join(" ".join(read(page).text).split())
    for part in ("What the loop did", "px on a side of 384", "equal but for the read-out", "steps right", "blue <b>dot</b>"):
        assert part in text, part
    for part in ("corner error", "IoU", "localisation floor"):
        assert part not in text, part


def test_errors_are_those_of_the_metric_on_the_common_side(runs: Sequence[Run]) -> None:
    found = condense(lines(runs[0]), where="here")
    expected = np.concatenate([
        [np.hypot((a.point_px[0] - a.target_px[0]) * 2, (a.point_px[1] - a.target_px[1]) * 4) for a in p.asked if a.target_px]
        for p in answers(TRUTH, noise_px=0.6, wrong_done=0.02, seed=runs[0].seed)
    ])  # 192 x 96 px on 384 x 384
    assert np.allclose(found.px_error, expected)
    assert np.mean(found.px_error <= 5) == pytest.approx(runs[0].values["pck384_5"])
    assert found.score.shape == (40,)
    assert (found.score >= 0).all()
    assert (found.score <= 1).all()


def test_truth_and_answers_come_back_from_the_lines(runs: Sequence[Run]) -> None:
    stored = lines(runs[0])
    again = truth_of(stored)
    assert isinstance(again, PointTruth)
    assert again.digest() == TRUTH.digest()
    scene = scenes_of(stored[5:6])[5]
    assert scene.count is not None
    original = answers(TRUTH, noise_px=0.6, wrong_done=0.02, seed=runs[0].seed)[5]
    assert [replace(a, unmarked_px=None) for a in scene.count.asked] == [replace(a, unmarked_px=None) for a in original.asked]  # type: ignore[arg-type]
    assert scene.prediction.records == original.records


def test_any_unmarked_object_is_right_where_the_metric_says_so() -> None:
    truth = PointTruth.of(ids=[1], categories=["dot"], source_image=[0], image_wh=np.array([[384.0, 384.0]]),
                          points=[np.array([[10.0, 10.0], [300.0, 300.0]])])  # fmt: skip
    base = answers(truth, noise_px=0.0)[0]
    step = replace(base.asked[0], point_px=(301.0, 300.0))
    stored = [{"id": 1, "size": [384, 384], "raw_text": "", "token_ids": [], "flags": [], "timing": {}, "records": [], "matches": [],
               "truth": [{"box": [*p, *p]} for p in truth.points_px.tolist()], "counted": "dot", "source_image": 0,
               "asked": [{"k": step.k, "num": 2, "target": step.target_px, "unmarked": step.unmarked_px.tolist(), "point": step.point_px,
                          "done": 0.1}]}]  # fmt: skip
    assert condense(stored, where="x").px_error == pytest.approx([np.hypot(291, 290)])
    assert condense(stored, where="x").score == [0.0]
    near = condense(stored, where="x", any_unmarked=True)
    assert near.px_error == pytest.approx([1.0])
    assert near.score == [1.0]


def test_other_differences_of_the_protocol_are_still_refused(runs: Sequence[Run]) -> None:
    other = replace(runs[0], protocol={**runs[0].protocol, "max_steps": 3})
    with pytest.raises(ConfigError, match="max_steps=3"):
        require_one_protocol([other, *runs[1:]])


def test_points_are_not_read_again(runs: Sequence[Run]) -> None:
    with pytest.raises(ConfigError, match=r"stores its points by one read-out only"):
        rescore(runs[0], lines(runs[0]), TRUTH, "local", num_replicates=10, seed=0)


@pytest.mark.parametrize("damage", [{"asked": [{"k": 0}]}, {"asked": [{"k": 0, "num": 3, "target": None, "unmarked": [], "point": [None, 1],
                                                                   "done": 0.1}]}, {"source_image": None}])  # fmt: skip
def test_a_damaged_line_names_the_file(runs: Sequence[Run], damage: dict[str, object]) -> None:
    stored = [{**lines(runs[0])[5], **damage}]
    with pytest.raises(DataError, match=r"here\.jsonl.*asked steps"):
        condense(stored, where="here.jsonl")


def test_every_line_is_strict_json(runs: Sequence[Run]) -> None:
    for text in runs[0].predictions_file.read_text().splitlines():
        line = json.loads(text, parse_constant=lambda name: pytest.fail(name))
        assert line["counted"] == TRUTH.counted[line["id"]]
        assert line["asked"][0]["k"] == 0


def test_a_sample_without_steps_has_no_asked(runs: Sequence[Run]) -> None:
    from coordvlm.metrics.records import TruthIndex, line_to_prediction, prediction_to_line

    line = prediction_to_line(Prediction(3, (192, 96), ()), TruthIndex(TRUTH))
    assert "asked" not in line
    assert line_to_prediction(line).asked == ()


def test_what_a_run_was_measured_to_is_what_its_evaluation_says(runs: Sequence[Run]) -> None:
    """The configuration of an ``eval`` leaves open what the run has settled."""
    assert not _any_unmarked(replace(runs[0], config={"metrics.any_unmarked": None}))
    assert _any_unmarked(replace(runs[0], config={"metrics.any_unmarked": None}, counts={**runs[0].counts, "measured_to_any_unmarked": 1}))


def test_what_counting_never_measures_is_not_missed(runs: Sequence[Run]) -> None:
    question = replace(QUESTION, metrics=[*QUESTION.metrics, "parse_rate", "truncation_rate", "pck_all_5", "count_rmse", "done_acc_none"])
    _, absent = _metrics(runs, question, "pck384_5")
    assert absent == ["done_acc_none"]
