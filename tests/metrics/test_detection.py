"""The metric as a whole: edges, order, refusals, intervals, several processes."""

from __future__ import annotations

import itertools
import math
import pickle
import random
import socket
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from coordvlm.contracts import Prediction, Record
from coordvlm.metrics.detection import DetectionMetric
from tests.metrics.cases import BACKENDS, predicted, predictions_of, random_case, truth, truth_of

A, B = (0.0, 0.0, 50.0, 50.0), (60.0, 10.0, 90.0, 80.0)
SPEC_NAMES = {
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AP_score1", "AP50_score1", "F1_50", "F1_75",
    "F1_95", "F1_mean", "duplicate_rate", "absent_class_rate", "parse_rate", "truncation_rate", "px_mean", "px_median", "px_p90",
    "px_p95", "pck_2", "pck_5", "pck_8", "pck_10", "pck_15",
}


def metric(gt=None, **options):
    defaults = {"backend": "faster", "num_replicates": 0, "seed": 0, "casefold": False}
    return DetectionMetric(**(defaults | options), truth=gt)


def evaluate(gt, predictions, **options):
    m = metric(gt, **options)
    m.update(predictions)
    return m.compute()


def values(evaluation):
    return {name: interval.value for name, interval in evaluation.metrics.items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == pytest.approx(second[name], abs=1e-9, nan_ok=True), name


def test_perfect_predictions():
    gt = truth((1, "cat", A), (1, "dog", B), (2, "dog", A), images=(1, 2, 3))
    found = evaluate(gt, [predicted(1, ("cat", A, 0.9), ("dog", B, 0.8)), predicted(2, ("dog", A, 0.7)), predicted(3)])
    v = values(found)
    assert set(v) >= SPEC_NAMES
    for name in ("AP", "AP50", "AP75", "AP_score1", "F1_50", "F1_95", "F1_mean", "parse_rate", "pck_2", "pck_all_2"):
        assert v[name] == pytest.approx(1.0), name
    for name in ("duplicate_rate", "absent_class_rate", "truncation_rate", "px_mean", "px384_p95"):
        assert v[name] == 0.0, name
    assert found.best_iou.tolist() == [1, 1, 1]
    assert found.best_threshold == 0.7
    assert found.counts["tier_stretch"] == 1
    assert found.per_class["dog"] == {"AP": pytest.approx(1), "AP50": pytest.approx(1), "num_true": 2.0}
    assert found.pr_curve["0.5"].shape == (101, 2)
    np.testing.assert_allclose(found.pr_curve["0.75"][:, 1], 1.0)


def test_no_predictions_at_all_is_zero_not_missing():
    found = evaluate(truth((1, "cat", A), (2, "dog", B), images=(1, 2)), [])
    v = values(found)
    assert [v[n] for n in ("AP", "AP50", "AR100", "F1_50", "F1_mean", "parse_rate", "pck_all_5")] == [0.0] * 7
    assert all(math.isnan(v[n]) for n in ("px_mean", "px_p90", "pck_5", "duplicate_rate", "absent_class_rate"))
    assert found.counts["images_without_prediction"] == 2
    assert found.best_iou.tolist() == [0, 0]


def test_an_unanswered_image_stays_in_the_denominator():
    gt = truth((1, "cat", A), (2, "cat", A), images=(1, 2))
    v = values(evaluate(gt, [predicted(1, ("cat", A, 0.9))]))
    assert v["AP"] == pytest.approx(51 / 101)
    assert v["F1_50"] == pytest.approx(2 / 3)
    assert v["parse_rate"] == 0.5


def test_no_truth_is_undefined():
    v = values(evaluate(truth(images=(1, 2)), [predicted(1, ("cat", A, 0.9))], num_replicates=10))
    assert all(math.isnan(v[n]) for n in ("AP", "AP50", "AP_score1", "AR100", "px_mean", "pck_all_5"))
    assert v["F1_50"] == 0.0
    assert v["absent_class_rate"] == 1.0


def test_nothing_at_all_is_undefined():
    v = values(evaluate(truth(), [], num_replicates=10))
    assert math.isnan(v["AP"])
    assert math.isnan(v["F1_mean"])
    assert values(evaluate(truth(images=()), [], num_replicates=10)).keys() == v.keys()


def test_only_crowds_are_no_truth():
    found = evaluate(truth((1, "cat", A), crowds=[0]), [predicted(1, ("cat", A, 0.9))], num_replicates=10)
    v = values(found)
    assert math.isnan(v["AP"])
    assert math.isnan(v["F1_50"])  # the prediction is excused and nothing was to be found
    assert v["absent_class_rate"] == 0.0
    assert (found.counts["truths"], found.counts["crowds"]) == (0, 1)


def test_unknown_descriptions_do_not_touch_ap():
    gt = truth((1, "cat", A))
    known = [predicted(1, ("cat", A, 0.5))]
    mixed = [predicted(1, ("elf", A, 0.9), ("cat", A, 0.5), ("orc", B, 0.9), ("orc", A, 0.9))]
    first, second = evaluate(gt, known), evaluate(gt, mixed)
    assert values(first)["AP"] == values(second)["AP"] == pytest.approx(1)
    assert values(second)["F1_50"] == pytest.approx(2 / 5)
    assert values(second)["absent_class_rate"] == 0.75
    assert (second.counts["unknown_descriptions"], second.counts["distinct_unknown_descriptions"]) == (3, 2)
    assert second.pairs.pred_index.tolist() == [1]
    all_unknown = values(evaluate(gt, [predicted(1, ("elf", A, 0.9))]))
    assert (all_unknown["AP"], all_unknown["F1_50"], all_unknown["absent_class_rate"]) == (0.0, 0.0, 1.0)


def test_descriptions_are_stripped_and_case_is_an_option():
    gt, said = truth((1, "cat", A)), [predicted(1, (" Cat ", A, 0.5))]
    assert values(evaluate(gt, said))["AP"] == 0.0
    assert values(evaluate(gt, said, casefold=True))["AP"] == pytest.approx(1)


def test_backends_are_equal_in_every_metric():
    for seed in range(3):
        data, results = random_case(seed, ties=True, crowd=0.2)
        gt = truth_of(data)
        first, second = (evaluate(gt, predictions_of(gt, results), backend=b, num_replicates=20) for b in BACKENDS)
        assert_equal(values(first), values(second))
        assert first.replicates.keys() == second.replicates.keys() >= SPEC_NAMES
        for name in first.replicates:
            np.testing.assert_array_equal(first.replicates[name], second.replicates[name])


def test_the_order_of_updates_does_not_matter():
    data, results = random_case(7, ties=True, crowd=0.2)
    gt = truth_of(data)
    predictions = predictions_of(gt, results)
    expected = evaluate(gt, predictions, num_replicates=20)
    random.Random(0).shuffle(predictions)
    m = metric(gt, num_replicates=20)
    for part in itertools.batched(predictions, 3) if hasattr(itertools, "batched") else ([p] for p in predictions):
        m.update(part)
    found = m.compute()
    assert_equal(values(found), values(expected))
    np.testing.assert_array_equal(found.replicates["AP"], expected.replicates["AP"])
    np.testing.assert_array_equal(found.pairs.ann_id, expected.pairs.ann_id)


def test_emission_order_decides_at_score_one():
    gt = truth((1, "cat", A))
    hit, miss = ("cat", A, 0.1), ("cat", B, 0.9)
    first, second = (values(evaluate(gt, [predicted(1, *order)])) for order in ((hit, miss), (miss, hit)))
    assert first["AP"] == second["AP"] == pytest.approx(0.5)
    assert (first["AP_score1"], second["AP_score1"]) == (pytest.approx(1), pytest.approx(0.5))


def test_intervals_cover_the_values_of_rates_and_follow_the_seed():
    data, results = random_case(1, num_images=40, crowd=0)
    gt = truth_of(data)
    predictions = predictions_of(gt, results)
    found = evaluate(gt, predictions, num_replicates=300)
    for name in ("F1_50", "F1_mean", "px_mean", "pck_5", "duplicate_rate"):
        interval = found.metrics[name]
        assert interval.low < interval.value < interval.high, name
        assert found.replicates[name].shape == (300,)
        assert np.nanmean(found.replicates[name]) == pytest.approx(interval.value, abs=0.1 * interval.value), name
    again, other = (evaluate(gt, predictions, num_replicates=300, seed=s) for s in (0, 1))
    assert again.metrics["AP"] == found.metrics["AP"]
    assert other.metrics["AP"] != found.metrics["AP"]
    assert other.metrics["AP"].value == found.metrics["AP"].value


def test_no_replicates_gives_values_alone():
    data, results = random_case(2)
    gt = truth_of(data)
    found = evaluate(gt, predictions_of(gt, results))
    assert found.replicates == {}
    assert all(math.isnan(i.low) and math.isnan(i.high) for i in found.metrics.values())


def test_ap_only_gives_the_same_ap():
    data, results = random_case(2)
    gt = truth_of(data)
    whole, short = (values(evaluate(gt, predictions_of(gt, results), ap_only=flag)) for flag in (False, True))
    assert len(short) == 12 + 3
    assert_equal(short, {name: whole[name] for name in short})


def test_an_image_predicted_twice_is_refused():
    m = metric(truth((1, "cat", A), images=(1, 2)))
    m.update([predicted(1)])
    with pytest.raises(ValueError, match="image 1 was predicted twice"):
        m.update([predicted(2, ("cat", A, 1)), predicted(1)])
    assert m.compute().counts["images_without_prediction"] == 1  # nothing of the refused call was kept


@pytest.mark.parametrize("image_id", [9, "1", None])
def test_an_image_that_the_truth_does_not_have_is_refused(image_id):
    m = metric(truth((1, "cat", A)))
    with pytest.raises(ValueError, match="which the truth"):
        m.update([Prediction(image_id, (200, 100), ())])


def test_a_metric_without_truth_refuses():
    with pytest.raises(RuntimeError, match="set_truth"):
        metric().update([])


def test_broken_records_are_refused_by_name():
    gt = truth((1, "cat", A))
    with pytest.raises(ValueError, match=r"image 1: kept record 1.*nan"):
        evaluate(gt, [predicted(1, ("cat", A, 1), ("cat", (0, 0, float("nan"), 5), 1))])
    with pytest.raises(ValueError, match=r"image 1: kept record 0.*score nan"):
        evaluate(gt, [predicted(1, ("cat", A, float("nan")))])
    with pytest.raises(ValueError, match="has no box"):
        evaluate(gt, [predicted(1, extra=[Record("cat", None, 1.0, "ok")])])


def test_options_that_cannot_work_are_refused():
    for option, named in (({"backend": "coco"}, "coco"), ({"num_replicates": -1}, "-1"), ({"seed": -2}, "-2")):
        with pytest.raises(ValueError, match=named):
            metric(**option)


def test_truth_that_contradicts_itself_is_refused():
    gt = truth((1, "cat", A))
    with pytest.raises(ValueError, match=r"unknown image id: \[1\]"):
        metric(type(gt)(**{**vars(gt), "image_ids": np.array([2])}))
    with pytest.raises(ValueError, match="'Cat' and 'cat'"):
        metric(type(gt)(**{**vars(gt), "category_names": ("Cat", "cat")}), casefold=True)


def test_results_are_cached_until_the_next_update_or_reset():
    m = metric(truth((1, "cat", A), images=(1, 2)))
    m.update([predicted(1, ("cat", A, 0.9))])
    first = m.compute()
    assert m.compute() is first
    m.update([predicted(2)])
    assert m.compute() is not first
    m.reset()
    assert m.compute().counts["predictions"] == 0
    assert m.state_dict() == {}


def test_the_metric_can_be_pickled_and_has_no_batch_value():
    m = metric(truth((1, "cat", A)))
    m.update([predicted(1, ("cat", A, 0.9))])
    assert values(pickle.loads(pickle.dumps(m)).compute())["AP"] == pytest.approx(1)
    with pytest.raises(TypeError, match="update"):
        m([predicted(1)])


def _rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    data, results = random_case(4, num_images=7, ties=True)
    gt = truth_of(data)
    predictions = predictions_of(gt, results)
    m = metric(gt, num_replicates=20)
    m.update([predictions[i] for i in ([0, 2, 4, 6] if rank == 0 else [1, 3, 5, 0])])  # as a sampler pads seven to eight
    found = m.compute()
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps((values(found), dict(found.counts), found.replicates["AP"])))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_rank, args=(port, str(tmp_path)), nprocs=2)
    data, results = random_case(4, num_images=7, ties=True)
    gt = truth_of(data)
    expected = evaluate(gt, predictions_of(gt, results), num_replicates=20)
    for rank in (0, 1):
        found, counts, ap = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        assert_equal(found, values(expected))
        assert counts == {**expected.counts, "sampler_duplicates": 1}
        np.testing.assert_array_equal(ap, expected.replicates["AP"])
