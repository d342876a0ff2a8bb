"""Tables of counting and its checklist, by hand."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest

from coordvlm.callbacks.gradient_health import GradientHealth
from coordvlm.contracts import Evaluation, Interval
from coordvlm.metrics.checklist import checklist
from coordvlm.metrics.counting_tables import REGIONS, STEP_COLUMNS, counting_tables, counting_to_json, steps_csv
from coordvlm.metrics.point_outcomes import steps_of
from tests.metrics.count_cases import evaluate, points, random_counting, reply, step

A, B, C = (100.0, 100.0), (200.0, 100.0), (100.0, 300.0)
FLAT = ([float(i) for i in range(40)], [1.0] * 40)


def tables_of(gt, answers, **options):
    return counting_tables(gt, answers, evaluate(gt, answers, **options), curves={}, gradients=None)


@pytest.fixture
def case():
    """Errors 1, 4, 7 (in x) and 20 (in y); one end seen, one not; counts 3 of 2 and 1 of 1."""
    gt = points([A, B], [C], categories=["red", "blue"])
    answers = [
        reply(1, step([A, B], 0, (101.0, 100.0), done=0.1), step([A, B], 1, (204.0, 100.0), done=0.8), step([A, B], 2, done=0.9),
              loop=[A, B, C], flag="step_limit"),
        reply(2, step([C], 0, (107.0, 300.0)), step([C], 0, (100.0, 320.0)), step([C], 1, done=0.2), loop=[C]),
    ]
    return gt, answers


def test_the_histogram_holds_every_step_with_a_target_once(case):
    rows = tables_of(*case).histogram
    assert [(r.label, r.steps, r.share) for r in rows] == [("0 – 2", 1, 0.25), ("2 – 5", 1, 0.25), ("5 – 10", 1, 0.25), ("> 10", 1, 0.25)]
    assert [r.within for r in rows] == [0.25, 0.5, 0.75, 1.0]
    assert [r.share_x for r in rows] == [0.5, 0.25, 0.25, 0.0]
    assert [r.share_y for r in rows] == [0.75, 0.0, 0.0, 0.25]
    assert [r.wanted for r in rows] == [{}, {"target": 0.9, "stretch": 0.95}, {}, {}]


def test_errors_by_group(case):
    rows = {(r.group, r.bucket): r for r in tables_of(*case).errors}
    everything = rows["all", "all"]
    assert (everything.steps, everything.within_5, everything.within_10, everything.above_15) == (4, 0.5, 0.75, 0.25)
    assert (everything.mean, everything.median, everything.on_unmarked) == (8.0, 5.5, 0.5)
    assert everything.p95 == pytest.approx(np.percentile([1, 4, 7, 20], 95))
    assert (everything.bias_x, everything.bias_y) == (3.0, 5.0)
    found = {group: {b: r.steps for (g, b), r in rows.items() if g == group} for group, _ in rows}
    assert found["objects"] == {"1 – 5": 4}
    assert found["marked"] == {"0": 3, "1 – 4": 1}
    assert found["left"] == {"1": 3, "≥ 2": 1}
    assert found["region"] == {"top left": 1, "top centre": 1, "bottom left": 2}
    assert found["category"] == {"blue": 2, "red": 2}
    assert rows["region", "top left"].mean == 1.0


def test_every_group_is_a_tiling():
    gt, answers = random_counting(4)
    rows = tables_of(gt, answers).errors
    total = next(r.steps for r in rows if r.group == "all")
    for group in ("objects", "marked", "left", "region", "category"):
        assert sum(r.steps for r in rows if r.group == group) == total, group
    assert len([r for r in rows if r.group == "region"]) == len(REGIONS)


def test_a_target_on_the_far_edge_is_in_the_last_region():
    corner = (384.0, 384.0)
    (row,) = (r for r in tables_of(points([corner]), [reply(1, step([corner], 0, corner))]).errors if r.group == "region")
    assert row.bucket == "bottom right"


def test_one_category_has_no_row():
    assert not [r for r in tables_of(points([A]), [reply(1, step([A], 0, A))]).errors if r.group == "category"]


def test_done_by_what_is_left(case):
    rows = {r.kind: r for r in tables_of(*case).done}
    assert (rows["end"].said_done, rows["end"].said_more, rows["end"].accuracy) == (1, 1, 0.5)
    assert (rows["last"].said_done, rows["last"].said_more, rows["last"].accuracy) == (1, 2, pytest.approx(2 / 3))
    assert (rows["early"].steps, rows["early"].accuracy, rows["early"].mean_probability) == (1, 1.0, 0.1)


def test_counts_beside_the_truth(case):
    tables = tables_of(*case)
    assert (tables.count_ids, tables.count_true, tables.count_found) == ((1, 2), (2, 1), (3, 1))
    rows = {r.bucket: r for r in tables.counts}
    assert (rows["all"].samples, rows["all"].mae, rows["all"].bias, rows["all"].exact, rows["all"].finished) == (2, 0.5, 0.5, 0.5, 0.5)
    assert rows["all"].loc_f1 == pytest.approx(2 * 3 / 7)
    assert set(rows) == {"all", "1 – 5"}


def test_samples_that_were_not_counted_are_in_no_row():
    tables = tables_of(points([A], [B]), [reply(1, step([A], 0, A), loop=[A])])
    assert tables.count_ids == (1,)
    assert tables.counts[0].samples == 1


def test_nothing_measured_is_an_empty_page_and_strict_json():
    tables = tables_of(points([A]), [])
    assert not tables.errors
    assert not tables.done
    assert not tables.counts
    assert [r.steps for r in tables.histogram] == [0, 0, 0, 0]
    assert math.isnan(tables.histogram[0].share)
    text = json.dumps(counting_to_json(tables), allow_nan=False)
    assert json.loads(text)["histogram"][0]["share"] is None


def test_errors_are_measured_to_what_the_evaluation_measured_them_to():
    gt, answers = points([A, B]), [reply(1, step([A, B], 0, B))]
    assert tables_of(gt, answers).errors[0].mean == 100.0
    assert tables_of(gt, answers, any_unmarked=True).errors[0].mean == 0.0


def test_steps_as_a_file(case):
    gt, answers = case
    text = steps_csv(gt, steps_of(gt, {a.sample_id: a for a in answers}, any_unmarked=False))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == STEP_COLUMNS
    assert len(rows) == 6
    named = ("category", "marked", "true_x", "error_px384", "is_done")
    assert tuple(rows[1][name] for name in named) == ("red", "1", "200", "4", "0")
    assert (rows[2]["true_x"], rows[2]["error_px"], rows[2]["done"], rows[2]["is_done"]) == ("", "", "0.9", "1")


# ------------------------------------------------------------------- checklist
def health(share_outside):
    return {"steps": 100, "min": 0.1, "median": 1.0, "max": 2.0, "share_outside": share_outside}


def watch(spikes):
    return {"steps": 100, "clipped_steps": 3, "loss_spikes": spikes, "spike_steps": list(range(spikes))}


GOOD = {"pck384_5": 0.96, "pck384_8": 0.99, "pck384_15": 0.995, "px384_mean": 2.0, "px384_median": 1.2}
CURVES = {"train_total_loss": FLAT, "val_total_loss": ([19.0, 39.0], [9.0, 2.0])}
HEALTH = {"healthy": [1e-4, 10.0], "spike_factor": 4.0, "spike_window": 20, "groups": {"x": health(0.01), "rows": health(0.04)},
          "tasks": {"regression": watch(0), "classification": watch(0)}}


def checks(values=GOOD, curves=CURVES, gradients=HEALTH):
    found = checklist(Evaluation({name: Interval(v) for name, v in values.items()}, {}), curves, gradients)
    assert len({c.name for c in found}) == len(found) == 9
    return {c.name: c for c in found}


def statuses(**options):
    return {name: c.status for name, c in checks(**options).items()}


def test_a_good_run_passes_everything():
    assert set(statuses().values()) == {"pass"}
    found = checks()
    assert (found["tier stretch"].value, found["median"].value, found["train/validation gap"].value) == (0.96, 1.2, 2.0)
    assert found["beyond 15 px"].value == pytest.approx(0.005)
    assert found["gradients in range"].found == "4.0% of rows outside [0.0001, 10.0]"


def test_what_is_unknown_never_passes():
    assert set(statuses(values={}, curves={}, gradients=None).values()) == {"not measured"}
    nan = dict.fromkeys(GOOD, math.nan)
    assert set(statuses(values=nan, curves={}, gradients={}).values()) == {"not measured"}
    assert all(math.isnan(c.value) for c in checks(values=nan, curves={}, gradients={"groups": {}}).values())


@pytest.mark.parametrize(("change", "failed"), [
    ({"pck384_5": 0.94}, {"tier stretch"}),
    ({"px384_mean": 3.0}, {"tier stretch"}),
    ({"pck384_5": 0.89}, {"tier target", "tier stretch"}),
    ({"px384_mean": 6.0}, {"tier minimum", "tier target", "tier stretch"}),
    ({"pck384_8": 0.89}, {"tier minimum"}),
    ({"pck384_8": 0.74}, {"tier minimum", "within 8 px"}),
    ({"px384_median": 5.0}, {"median"}),
    ({"pck384_15": 0.95 - 1e-9}, {"beyond 15 px"}),
])  # fmt: skip
def test_bounds_of_the_pixel_errors(change, failed):
    assert {name for name, status in statuses(values=GOOD | change).items() if status == "fail"} == failed


@pytest.mark.parametrize(("validation", "status"), [(2.99, "pass"), (3.0, "fail"), (0.5, "pass"), (math.nan, "fail")])
def test_the_gap_is_between_the_last_validation_and_the_training_before_it(validation, status):
    train = ([float(i) for i in range(40)], [50.0] * 20 + [1.0] * 12 + [100.0] * 8)
    curves = {"train_total_loss": train, "val_total_loss": ([10.0, 31.0], [1.0, validation])}
    assert checks(curves=curves)["train/validation gap"].status == status


@pytest.mark.parametrize("curves", [
    {"train_total_loss": FLAT}, {"val_total_loss": ([1.0], [1.0])}, {"train_total_loss": ([9.0], [1.0]), "val_total_loss": ([3.0], [1.0])},
    {"train_total_loss": ([1.0], [0.0]), "val_total_loss": ([3.0], [1.0])}, {"train_total_loss": FLAT, "val_total_loss": ([], [])},
])  # fmt: skip
def test_a_gap_needs_both_losses(curves):
    assert checks(curves=curves)["train/validation gap"].status == "not measured"


def test_spikes_are_counted_by_the_watch_or_in_the_log():
    jump = ([float(i) for i in range(40)], [1.0] * 25 + [5.1] + [1.0] * 14)
    found = checks(curves={"train_total_loss": jump}, gradients=None)["loss spikes"]
    assert (found.status, found.value) == ("fail", 1.0)
    assert "step 25" in found.found
    assert checks(curves={"train_total_loss": jump})["loss spikes"].status == "pass", "the watch saw every step"
    found = checks(gradients=HEALTH | {"tasks": {"regression": watch(0), "classification": watch(3)}})["loss spikes"]
    assert (found.status, found.value, found.asks) == ("fail", 3.0, "no loss above 4.0 × the median of the 20 before it")
    falling = ([float(i) for i in range(40)], [100.0 * 0.8**i for i in range(40)])
    assert checks(curves={"train_total_loss": falling}, gradients=None)["loss spikes"].status == "pass"
    short = (FLAT[0][:10], FLAT[1][:10])
    assert checks(curves={"train_total_loss": short}, gradients=None)["loss spikes"].status == "not measured"


def test_a_watch_that_could_judge_no_loss_measured_nothing():
    few = checks(gradients=HEALTH | {"tasks": {"all": watch(0) | {"steps": 10}}})["loss spikes"]
    assert (few.status, few.found) == ("not measured", "10 steps are too few")
    assert checks(gradients=HEALTH | {"tasks": {"all": watch(0) | {"steps": 11}}})["loss spikes"].status == "pass"


def test_the_group_that_is_outside_most_often_decides():
    found = checks(gradients=HEALTH | {"groups": {"x": health(0.0), "y": health(0.2)}})["gradients in range"]
    assert (found.status, found.value) == ("fail", 0.2)
    assert found.found.startswith("20.0% of y")


def test_the_watch_of_a_run_is_understood():
    """Its own summary, of a callback that has seen some steps."""
    callback = GradientHealth(every_n_steps=1, healthy=[0.1, 10.0], warn_every_n_steps=100, spike_factor=4.0, spike_window=10)
    callback.norms["x"] += [1.0] * 9 + [11.0]
    for number, loss in enumerate([1.0] * 12 + [9.0]):
        callback._judge_loss("", number, loss)
    found = checks(gradients=callback.findings()["gradient_health"])
    assert (found["gradients in range"].value, found["gradients in range"].status) == (0.1, "fail")
    assert (found["loss spikes"].value, found["loss spikes"].status) == (1.0, "fail")
