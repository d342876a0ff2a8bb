"""Counting: single steps and counts by hand, published cases, failures, refusals."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest

from coordvlm.contracts import Prediction, Record
from coordvlm.metrics.counting import CountingMetric
from tests.data_root import peer_data
from tests.metrics.cases import read, truth
from tests.metrics.count_cases import evaluate, points, reply, step, values

A, B, C = (100.0, 100.0), (200.0, 100.0), (100.0, 300.0)
LOOP = {"count_mae", "count_rmse", "count_bias", "count_exact", "count_within_5pct", "count_mae_n5", "finished_rate", "loc_f1"}
STEPS = {
    "px_mean", "px_median", "px_p90", "px_p95", "px384_mean", "px384_median", "px384_p90", "px384_p95", "pck_5", "pck384_2", "pck384_5",
    "pck384_8", "pck384_10", "pck384_15", "n5_pck384_5", "n5_px384_median", "on_unmarked", "miss_on_unmarked", "loss_x", "loss_y",
    "done_acc", "done_acc_end", "done_acc_last", "done_acc_early", "px384_x_mean", "px384_y_mean",
}  # fmt: skip


# ---------------------------------------------------------------- single steps
def test_errors_by_hand_in_both_units():
    """Image 192 x 96: one source px is 2 px of 384 in x and 4 in y. Errors (3, 4), (0, 2), (-20, 0)."""
    gt = points([(10, 10), (50, 50), (90, 80)], size=(192.0, 96.0))
    true = [(10, 10), (50, 50), (90, 80)]
    found = evaluate(gt, [reply(1, step(true, 0, (13, 14)), step(true, 1, (50, 52)), step(true, 2, (70, 80)))])
    v = {name: m.value for name, m in found.metrics.items()}
    assert found.px_error.tolist() == [5, 2, 20]
    assert found.px_error_xy.tolist() == [[3, 4], [0, 2], [-20, 0]]
    assert v["px_mean"] == pytest.approx(9)
    assert v["px_median"] == pytest.approx(5)
    errors = [math.hypot(6, 16), 8, 40]
    assert v["px384_mean"] == pytest.approx(statistics.fmean(errors))
    assert v["px384_median"] == pytest.approx(statistics.median(errors))
    assert (v["px384_x_mean"], v["px384_y_mean"]) == (pytest.approx(46 / 3), pytest.approx(8))
    assert [v[f"pck_{r}"] for r in (2, 5, 8, 10, 15)] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert [v[f"pck384_{r}"] for r in (2, 5, 8, 10, 15)] == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])
    assert v["loss_x"] == pytest.approx(((6 / 192) ** 2 + (40 / 192) ** 2) / 3)  # [-1, 1] is two units wide
    assert v["loss_y"] == pytest.approx(((8 / 96) ** 2 + (4 / 96) ** 2) / 3)
    assert {k: n for k, n in found.counts.items() if k.startswith("px384_") and k.count("_") == 2} == {
        "px384_0_2": 0, "px384_2_5": 0, "px384_5_10": 1, "px384_above_10": 2,
    }  # fmt: skip
    assert (found.counts["px_x_2_5"], found.counts["px_x_above_10"], found.counts["px384_y_5_10"]) == (1, 1, 1)


def test_a_perfect_split_reaches_every_tier():
    gt = points([A, B], [C], [])
    answers = [reply(1, step([A, B], 0, A), step([A, B], 1, B), step([A, B], 2, done=1.0), loop=[A, B]),
               reply(2, step([C], 0, C), step([C], 1, done=0.9), loop=[C]), reply(3, step([], 0, done=1.0), loop=[])]
    found = evaluate(gt, answers)
    v = {name: m.value for name, m in found.metrics.items()}
    assert set(v) >= STEPS | LOOP
    for name in ("pck384_2", "pck_2", "n5_pck384_5", "on_unmarked", "done_acc_end", "done_acc_last", "done_acc_early", "done_acc",
                 "count_exact", "finished_rate", "loc_precision", "loc_recall", "loc_f1", "count_within_5pct", "k_1_4_pck384_5"):
        assert v[name] == 1.0, name
    for name in ("px_mean", "px384_p95", "loss_x", "count_mae", "count_rmse", "count_bias", "count_mae_n5", "count_sre"):
        assert v[name] == 0.0, name
    assert math.isnan(v["miss_on_unmarked"]), "nothing was missed"
    assert [found.counts[f"tier_{t}"] for t in ("minimum", "target", "stretch")] == [1, 1, 1]


@pytest.mark.parametrize(("good", "far", "tiers"), [
    (19, 30.0, (1, 1, 1)), (18, 30.0, (1, 1, 0)), (17, 30.0, (0, 0, 0)), (19, 61.0, (1, 1, 0)), (19, 81.0, (1, 0, 0)),
    (19, 130.0, (0, 0, 0)),
])  # fmt: skip
def test_tiers_want_a_share_and_a_mean(good, far, tiers):
    gt = points(*[[A]] * 20)
    found = evaluate(gt, [reply(i + 1, step([A], 0, A if i < good else (A[0] + far, A[1]))) for i in range(20)])
    assert tuple(found.counts[f"tier_{t}"] for t in ("minimum", "target", "stretch")) == tiers


def test_wrong_picks_are_told_from_wrong_places():
    """On the target, on another unmarked one, on a marked one, on nothing."""
    true = [A, B, C]
    gt = points(true, true, true, true)
    answers = [reply(1, step(true, 1, B)), reply(2, step(true, 1, (C[0] + 3, C[1] + 4))), reply(3, step(true, 1, A)),
               reply(4, step(true, 1, (300.0, 300.0)))]
    v = values(gt, answers)
    assert (v["pck384_5"], v["on_unmarked"]) == (1 / 4, 2 / 4)
    assert v["miss_on_unmarked"] == pytest.approx(1 / 3)
    v = values(gt, answers, any_unmarked=True)
    assert (v["pck384_5"], v["on_unmarked"]) == (2 / 4, 2 / 4)
    assert "miss_on_unmarked" not in v
    assert v["px384_mean"] == pytest.approx((0 + 5 + 100 + 200) / 4)
    assert values(gt, answers, tolerance_px=4.9)["on_unmarked"] == 1 / 4


def test_what_is_nearest_is_decided_on_the_common_frame():
    """In source px the second is nearer (30 < 40), with both sides scaled to 384 the first (40 < 120)."""
    true = [(140.0, 50.0), (100.0, 80.0)]
    found = evaluate(points(true, size=(384.0, 96.0)), [reply(1, step(true, 0, (100.0, 50.0)))], any_unmarked=True)
    assert found.px_error_xy.tolist() == [[-40, 0]]


def test_few_objects_have_figures_of_their_own():
    many = [(float(10 * i), 50.0) for i in range(6)]
    gt = points([A, B], many)
    v = values(gt, [reply(1, step([A, B], 0, A), step([A, B], 1, C)), reply(2, step(many, 0, many[0]), step(many, 5, many[5]))])
    assert (v["pck384_5"], v["n5_pck384_5"]) == (3 / 4, 1 / 2)
    assert v["n5_px384_mean"] == pytest.approx(math.hypot(100, 200) / 2)
    assert v["n5_px384_median"] == pytest.approx(math.hypot(100, 200) / 2)


def test_marked_objects_have_their_bucket():
    true = [(float(10 * i), 50.0) for i in range(30)]
    v = values(points(true), [reply(1, *(step(true, k, true[k] if k in (0, 4, 19) else C) for k in (0, 1, 4, 5, 9, 19, 20, 29)))])
    found = {name: value for name, value in v.items() if name.startswith("k_")}
    assert found == {"k_0_pck384_5": 1, "k_1_4_pck384_5": 0.5, "k_5_9_pck384_5": 0, "k_10_19_pck384_5": 1, "k_20_up_pck384_5": 0}
    assert "k_1_4_pck384_5" not in values(points([A]), [reply(1, step([A], 0, A))])


# ------------------------------------------------------------------------ done
def test_done_is_judged_by_what_is_left():
    true = [A, B, C]
    gt = points(true, [])
    asked = [step(true, 3, done=0.51), step(true, 3, done=0.5), step(true, 2, done=0.5), step(true, 2, done=0.9), step(true, 1, done=0.1),
             step(true, 0, done=0.2), step(true, 0, done=0.6)]
    found = evaluate(gt, [reply(1, *asked), reply(2, step([], 0, done=1.0))])
    v = {name: m.value for name, m in found.metrics.items()}
    assert (v["done_acc_end"], v["done_acc_last"], v["done_acc_early"]) == (pytest.approx(2 / 3), 1 / 2, pytest.approx(2 / 3))
    assert v["done_acc"] == pytest.approx(5 / 8)
    assert [found.counts[n] for n in ("done_said_done", "done_said_more", "more_said_done", "more_said_more")] == [2, 1, 2, 3]


def test_a_kind_that_was_not_asked_is_undefined():
    v = values(points([A]), [reply(1, step([A], 0, A))])
    assert math.isnan(v["done_acc_end"])
    assert math.isnan(v["done_acc_early"])
    assert v["done_acc_last"] == 1.0


def test_nothing_is_said_of_done_where_it_was_never_taught():
    gt, answers = points([A, B]), [reply(1, step([A, B], 0, A, done=0.9), step([A, B], 2, done=0.2))]
    taught, not_taught = (evaluate(gt, answers, num_replicates=20, done_taught=taught) for taught in (True, False))
    about = {name for name in taught.metrics if "done" in name}
    assert about == {"done_acc", "done_acc_end", "done_acc_last", "done_acc_early"}
    assert {name: m.value for name, m in not_taught.metrics.items()} == pytest.approx(
        {name: m.value for name, m in taught.metrics.items() if name not in about}, nan_ok=True
    )
    assert [name for name in not_taught.counts if "done" in name] == ["done_not_taught"]
    assert not [name for name in not_taught.replicates if "done" in name]


# ------------------------------------------------------------------------ loop
def test_counts_by_hand():
    """True 4, 10, 0, 20; counted 5, 8, 1, 20 (the marks that repeat are not counted)."""
    rows = [[(float(15 * i + 10), 40.0) for i in range(n)] for n in (4, 10, 0, 20)]
    gt = points(*rows)
    answers = [reply(1, loop=[*rows[0], (300.0, 300.0)]), reply(2, loop=rows[1][:8], flag="repeated", repeated=rows[1][:3]),
               reply(3, loop=[A]), reply(4, loop=rows[3], flag="step_limit")]
    found = evaluate(gt, answers)
    v = {name: m.value for name, m in found.metrics.items()}
    assert v["count_mae"] == 1.0
    assert v["count_rmse"] == pytest.approx(math.sqrt((1 + 4 + 1) / 4))
    assert v["count_bias"] == 0.0
    assert v["count_exact"] == 1 / 4
    assert v["count_within_one"] == 3 / 4
    assert (v["count_within_5pct"], v["count_within_10pct"], v["count_within_20pct"]) == (1 / 4, 1 / 4, 2 / 4)
    assert (v["count_mae_n5"], v["count_bias_n5"]) == (1.0, 1.0)
    assert v["finished_rate"] == 2 / 4
    assert v["loc_precision"] == pytest.approx(32 / 34)
    assert v["loc_recall"] == pytest.approx(32 / 34)
    assert v["loc_f1"] == pytest.approx(64 / 68)
    assert [found.counts[f"samples_{f}"] for f in ("finished", "repeated", "step_limit")] == [2, 1, 1]
    assert (found.counts["status_repeated"], found.counts["samples_with_nothing"], found.counts["samples_counted"]) == (3, 1, 4)


@pytest.mark.parametrize("name", ["plain", "perfect", "zero-gt", "all-zero-pred", "single", "big-spread"])
def test_published_counts(name):
    case = next(c for c in read(peer_data() / "peer_cases" / "counting.json")["cases"] if c["id"] == name)
    gt = points(*[[(float(i % 61), float(i // 61)) for i in range(n)] for n in case["gt"]])
    answers = [reply(i, loop=[(380.0, 380.0)] * n) for i, n in enumerate(case["pred"], 1)]
    v = values(gt, answers)
    wanted = {"count_mae": "mae", "count_rmse": "rmse", "count_nae": "nae", "count_sre": "sre", "count_exact": "exact_accuracy",
              "count_within_one": "within_1"}
    assert {ours: v[ours] for ours in wanted} == pytest.approx({ours: case[theirs] for ours, theirs in wanted.items()})


def test_published_distances():
    case = next(c for c in read(peer_data() / "peer_cases" / "point_metrics.json")["cases"] if c["id"] == "mmpose-epe")
    kept = [i for i, mask in enumerate(case["mask"]) if mask]
    gt = points(*[[case["target"][i]] for i in kept])
    v = values(gt, [reply(n, step([case["target"][i]], 0, tuple(case["pred"][i]))) for n, i in enumerate(kept, 1)])
    assert v["px_mean"] == pytest.approx(case["expected_mean_euclidean"], abs=1e-6)


def test_no_count_without_the_loop():
    v = values(points([A]), [reply(1, step([A], 0, A))])
    assert not [name for name in v if name.startswith(("count_", "loc_", "finished"))]


# -------------------------------------------------------------------- failures
def test_a_sample_without_an_answer_is_a_failure_of_every_kind():
    gt = points([A, B], [A, B], [C], [])
    found = evaluate(gt, [reply(1, step([A, B], 0, A), step([A, B], 1, B), step([A, B], 2, done=1.0), loop=[A, B])])
    v = {name: m.value for name, m in found.metrics.items()}
    assert v["pck384_5"] == v["pck_15"] == v["on_unmarked"] == v["n5_pck384_5"] == 2 / 4
    assert (v["done_acc_end"], v["done_acc_last"], v["done_acc_early"]) == (1 / 4, 1 / 3, 1 / 2)
    assert (v["px384_mean"], v["loss_x"], v["k_0_pck384_5"]) == (0, 0, 1), "they have no distance and no k"
    assert (v["count_mae"], v["count_bias"]) == (3 / 4, -3 / 4)
    assert (v["count_exact"], v["count_within_20pct"], v["finished_rate"]) == (1 / 4, 1 / 4, 1 / 4)
    assert (v["loc_precision"], v["loc_recall"]) == (1.0, 2 / 5)
    assert (found.counts["samples_without_prediction"], found.counts["samples_without_steps"]) == (3, 3)
    assert found.counts["tier_minimum"] == 0


def test_no_answer_at_all():
    v = values(points([A], []), [])
    assert (v["pck384_5"], v["done_acc"], v["done_acc_end"]) == (0.0, 0.0, 0.0)
    assert math.isnan(v["px384_median"])
    assert "count_mae" not in v


def test_a_count_without_single_steps_is_no_failure_of_them():
    v = values(points([A], [B]), [reply(1, loop=[A]), reply(2, loop=[B])])
    assert math.isnan(v["pck384_5"])
    assert math.isnan(v["done_acc"])
    assert v["count_exact"] == 1.0


def test_no_sample_and_nothing_to_count():
    assert math.isnan(values(points(), [])["pck384_5"])
    v = values(points([], []), [reply(1, step([], 0, done=1.0), loop=[]), reply(2, step([], 0, done=0.0), loop=[A])])
    assert math.isnan(v["pck384_5"])
    assert (v["done_acc_end"], v["count_mae"], v["count_exact"], v["loc_precision"]) == (0.5, 0.5, 0.5, 0.0)
    assert math.isnan(v["count_nae"])
    assert math.isnan(v["loc_recall"])


def test_a_step_of_another_number_than_the_truth_is_counted():
    """Training objects may be fewer than the annotations; the count is judged by the annotations."""
    found = evaluate(points([A, B]), [reply(1, step([A], 0, A), step([A, B], 0, A))])
    assert found.counts["steps_of_another_number"] == 1


# -------------------------------------------------------------------- refusals
def test_a_truth_without_points_is_refused():
    with pytest.raises(ValueError, match="PointTruth"):
        CountingMetric(num_replicates=0, seed=0, tolerance_px=5.0, any_unmarked=False, truth=truth((1, "cat", (0, 0, 9, 9))))


def test_an_infinite_true_point_is_refused():
    with pytest.raises(ValueError, match=r"sample 2: true points must be finite, got \[inf, 1.0\]"):
        evaluate(points([A], [(math.inf, 1.0)]), [])


@pytest.mark.parametrize(("asked", "shown"), [
    (step([A], 0, (math.nan, 1.0)), "nan"), (step([A], 0, (math.inf, 1.0)), "inf"), (step([A], 0, A, done=math.nan), "nan"),
    (replace(step([A, B], 0, A), k=1), "got 2"), (replace(step([A], 0, A), target_px=None), "target None"),
    (replace(step([A], 1, A), k=2), "k = 2 of 1"), (replace(step([A], 1, A), target_px=A), "target \\(100"),
])  # fmt: skip
def test_a_step_that_means_nothing_is_refused(asked, shown):
    with pytest.raises(ValueError, match=rf"sample 1, step .*{shown}"):
        evaluate(points([A, B]), [reply(1, asked)])


@pytest.mark.parametrize("point", [None, (math.nan, 0.0)])
def test_a_counted_record_without_a_point_is_refused(point):
    broken = Prediction(1, (384, 384), (Record("dot", None, 1.0, "ok", point_px=point),), flags=frozenset({"finished"}))
    with pytest.raises(ValueError, match="sample 1: kept record 0 must have a finite point"):
        evaluate(points([A]), [broken])


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_a_radius_of_nothing_is_refused(radius):
    with pytest.raises(ValueError, match="tolerance_px must be above 0"):
        CountingMetric(num_replicates=0, seed=0, tolerance_px=radius, any_unmarked=False)


def test_unknown_and_repeated_samples_are_refused():
    metric = CountingMetric(num_replicates=0, seed=0, tolerance_px=5.0, any_unmarked=False, truth=points([A]))
    with pytest.raises(ValueError, match="sample 4, which the truth"):
        metric.update([reply(4)])
    metric.update([reply(1)])
    with pytest.raises(ValueError, match="sample 1 was predicted twice"):
        metric.update([reply(1)])
