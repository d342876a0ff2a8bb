"""Answers to clips by every way of looking, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coordvlm.contracts import ArmAnswer, GroundTruth, Prediction
from coordvlm.metrics.foveation import FoveationMetric, ratio_name
from tests.metrics.cases import truth as boxes
from tests.metrics.clip_cases import clips, evaluate, said, values

#: Three clips in words. Fine: right, right, wrong; coarse: right, wrong, wrong; swap: wrong everywhere.
WORDS = clips("square", "cross", "disc")
SAID = [
    said(1, {"coarse": (1.0, 2, 2), "fine": (0.5, 2, 2), "swap": (3.0, 2, 1), "random": (1.0, 2, 2)}),
    said(2, {"coarse": (2.0, 2, 1), "fine": (0.5, 2, 2), "swap": (3.0, 2, 1), "random": (1.0, 2, 1)}),
    said(3, {"coarse": (3.0, 2, 0), "fine": (2.0, 2, 1), "swap": (3.0, 2, 1), "random": (1.0, 2, 1)}),
]


def test_accuracy_loss_and_differences_by_hand() -> None:
    found = values(WORDS, SAID)
    assert found["acc_fine"] == found["acc"] == pytest.approx(2 / 3)
    assert found["acc_coarse"] == pytest.approx(1 / 3)
    assert found["acc_swap"] == 0
    assert found["token_acc_coarse"] == pytest.approx(3 / 6)
    assert found["loss_coarse"] == pytest.approx(6 / 6)
    assert found["loss_fine"] == found["loss"] == pytest.approx(3 / 6)
    assert found["ratio_matched"] == pytest.approx(2.0)
    assert found["gain_acc"] == pytest.approx(1 / 3)
    assert found["swap_drop_acc"] == pytest.approx(2 / 3)
    assert found["random_drop_acc"] == pytest.approx(1 / 3)


def test_points_are_measured_on_a_common_side() -> None:
    truth = clips((0.0, 0.0), (10.0, 10.0), (50.0, 50.0), size=(192, 96))  # x counts 2 on a side of 384, y counts 4
    arms = [
        {"fine": (1.0, 3, 0, (1.0, 0.0)), "coarse": (2.0, 3, 0, (0.0, 10.0)), "swap": (1.0, 3, 0, (0.0, 3.0))},
        {"fine": (1.0, 3, 0, (10.0, 11.0)), "coarse": (2.0, 3, 0, (10.0, 18.0)), "swap": (1.0, 3, 0, (13.0, 10.0))},
        {"fine": (1.0, 3, 0, (53.0, 50.0)), "coarse": (2.0, 3, 0, (56.0, 50.0)), "swap": (1.0, 3, 0, None)},
    ]
    answers = [said(i, a) for i, a in enumerate(arms, 1)]
    found = values(truth, answers)
    assert found["px384_median_fine"] == found["px384_median"] == pytest.approx(4.0)  # 2, 4, 6
    assert found["px_median_fine"] == found["px_median"] == pytest.approx(1.0)  # 1, 1, 3
    assert found["px384_median_coarse"] == pytest.approx(32.0)  # 40, 32, 12
    assert found["px_ratio"] == pytest.approx(4 / 32)
    assert found["px384_median_swap"] == pytest.approx((12 + 6) / 2)  # the third gave none
    assert found["swap_px_ratio"] == pytest.approx(4 / 9)
    assert found["pck384_5_fine"] == pytest.approx(2 / 3)
    assert found["pck384_20_coarse"] == pytest.approx(1 / 3)
    assert found["pck384_20_swap"] == pytest.approx(2 / 3)  # no point is a miss
    assert "acc" not in found
    result = evaluate(truth, answers)
    assert (result.counts["swap_without_point"], result.counts["fine_without_point"], result.counts["points"]) == (1, 0, 3)
    assert result.px_error is not None
    assert sorted(result.px_error) == pytest.approx([1, 1, 3])


@pytest.mark.parametrize(("coarse", "fine", "name"), [
    (1.0, 1.0, "ratio_matched"), (0.5, 0.5, "ratio_matched"), (0.0, 1.0, "ratio_unmatched"), (0.1, 1.0, "ratio_unmatched"),
    (2.0, 1.0, "ratio_unmatched"), (1.0, 0.0, None),
])  # fmt: skip
def test_only_equal_weights_make_a_matched_comparison(coarse: float, fine: float, name: str | None) -> None:
    assert ratio_name(coarse, fine) == name
    found = values(WORDS, SAID, coarse=coarse, fine=fine)
    assert {n for n in found if n.startswith("ratio")} == ({name} if name else set())
    assert ("gain_acc" in found) == (name == "ratio_matched")
    assert ("gain_acc_unmatched" in found) == (name == "ratio_unmatched")
    assert ("swap_drop_acc" in found) == (fine > 0)  # a pass that was not trained has nothing to drop
    assert found["acc"] == found["acc_fine" if fine else "acc_coarse"]


def test_points_of_an_untrained_coarse_pass_are_unmatched_too() -> None:
    truth = clips((0.0, 0.0))
    found = values(truth, [said(1, {"fine": (1, 3, 0, (1.0, 0.0)), "coarse": (1, 3, 0, (2.0, 0.0))})], coarse=0.0)
    assert found["px_ratio_unmatched"] == 0.5
    assert "px_ratio" not in found


def test_a_clip_without_a_prediction_is_wrong_in_every_arm() -> None:
    result = evaluate(WORDS, SAID[:2])
    found = {n: i.value for n, i in result.metrics.items()}
    assert found["acc_fine"] == pytest.approx(2 / 3)
    assert found["gain_acc"] == pytest.approx(1 / 3)
    assert found["loss_fine"] == pytest.approx(1 / 4)  # of the two that were answered
    assert result.counts["clips_without_prediction"] == 1


def test_a_clip_an_arm_was_not_tried_on_does_not_look_like_a_failure_of_it() -> None:
    """Swapping takes two clips: the last batch may hold one, and a miss there would flatter the plan."""
    alone = said(3, {"coarse": (3.0, 2, 0), "fine": (2.0, 2, 1)})
    half = said(2, {"coarse": (2.0, 2, 1), "fine": (0.5, 2, 2), "swap": (0.5, 2, 2)})
    result = evaluate(WORDS, [SAID[0], half, alone])
    found = {n: i.value for n, i in result.metrics.items()}
    assert found["acc_swap"] == pytest.approx(1 / 2)
    assert found["swap_drop_acc"] == pytest.approx(1 - 1 / 2)  # over clips 1 and 2; acc_fine of all three is 2/3
    assert result.counts["swap_not_tried"] == 1


def test_every_kind_has_its_own_numbers_when_there_are_several() -> None:
    truth = clips("a", "b", (0.0, 0.0), kinds=["qa", "global", "ball"])
    answers = [
        said(1, {"fine": (1.0, 2, 2), "coarse": (2.0, 2, 0)}), said(2, {"fine": (4.0, 2, 0), "coarse": (4.0, 2, 2)}),
        said(3, {"fine": (1.0, 3, 0, (3.0, 4.0)), "coarse": (1.0, 3, 0, (30.0, 40.0))}),
    ]
    result = evaluate(truth, answers)
    found = {n: i.value for n, i in result.metrics.items()}
    assert (found["acc_fine.qa"], found["acc_fine.global"], found["acc_fine"]) == (1.0, 0.0, 0.5)
    assert (found["ratio_matched.qa"], found["ratio_matched.global"]) == (2.0, 1.0)
    assert (found["gain_acc.qa"], found["gain_acc.global"], found["gain_acc"]) == (1.0, -1.0, 0.0)
    assert found["px384_median_fine.ball"] == found["px384_median_fine"] == 5.0
    assert found["px_ratio.ball"] == pytest.approx(0.1)
    assert "acc_fine.ball" not in found
    assert not [n for n in values(WORDS, SAID) if "." in n]
    assert {k: n for k, n in result.counts.items() if k.startswith("kind_")} == {"kind_ball": 1, "kind_global": 1, "kind_qa": 1}


def test_a_loss_that_is_not_finite_is_undefined_and_counted() -> None:
    for broken in (math.nan, math.inf):
        result = evaluate(WORDS, [*SAID[:2], said(3, {"fine": (broken, 2, 1), "coarse": (1.0, 2, 1)})], num_replicates=20)
        assert math.isnan(result.metrics["loss_fine"].value)
        assert math.isnan(result.metrics["ratio_matched"].value)
        assert result.metrics["acc_fine"].value == pytest.approx(2 / 3)
        assert math.isfinite(result.metrics["loss_coarse"].value)
        assert result.counts["fine_loss_not_finite"] == 1
        assert "coarse_loss_not_finite" not in result.counts


def test_an_answer_without_tokens_is_not_right() -> None:
    assert values(clips("a"), [said(1, {"fine": (0.0, 0, 0)})])["acc_fine"] == 0.0


def test_no_fine_point_at_all_leaves_the_ratio_undefined() -> None:
    found = values(clips((1.0, 1.0)), [said(1, {"fine": (1, 3, 0, None), "coarse": (1, 3, 0, (5.0, 5.0))})])
    assert math.isnan(found["px_ratio"])
    assert math.isnan(found["px384_median_fine"])
    assert found["pck384_20_fine"] == 0.0


def test_no_predictions_at_all_are_wrong_answers() -> None:
    found = evaluate(WORDS, [])
    assert found.metrics["acc"].value == 0.0
    assert found.counts["clips_without_prediction"] == 3
    assert math.isnan(found.metrics["loss"].value)


def test_replicates_are_the_metric_of_repeated_clips() -> None:
    """Weights by hand: each replicate is the evaluation of the drawn clips, written out as clips of their own."""
    rng = np.random.default_rng(3)
    num, sources = 12, [i // 2 for i in range(12)]
    rows = [
        {arm: (float(rng.uniform(0.1, 3)), 2, int(rng.integers(0, 3))) for arm in ("coarse", "fine", "swap")} for _ in range(num)
    ]
    truth = clips(*["w"] * num, source=sources)
    result = evaluate(truth, [said(i + 1, r) for i, r in enumerate(rows)], num_replicates=6, seed=5)
    drawn = np.random.Generator(np.random.PCG64(5)).integers(0, 6, size=(6, 6))
    for replicate, chosen in enumerate(drawn):
        again = [rows[i] for s in chosen for i in range(num) if sources[i] == s]
        expected = values(clips(*["w"] * len(again)), [said(i + 1, r) for i, r in enumerate(again)])
        for name in ("acc_fine", "gain_acc", "swap_drop_acc", "ratio_matched", "loss_coarse", "token_acc_swap"):
            assert result.replicates[name][replicate] == pytest.approx(expected[name]), name
    assert result.counts["source_clips"] == 6
    low, high = np.quantile(result.replicates["gain_acc"], [0.025, 0.975])
    assert (result.metrics["gain_acc"].low, result.metrics["gain_acc"].high) == pytest.approx((low, high))


def test_differences_are_paired() -> None:
    """Arms that err on the same clips differ for certain, though each alone is uncertain."""
    rows = [{"fine": (1.0, 2, 2 * (i % 2)), "coarse": (2.0, 2, 2 * (i % 2))} for i in range(40)]
    result = evaluate(clips(*["w"] * 40), [said(i + 1, r) for i, r in enumerate(rows)], num_replicates=50)
    gain, ratio, alone = (result.metrics[n] for n in ("gain_acc", "ratio_matched", "acc_fine"))
    assert gain.low == gain.high == 0.0
    assert (ratio.low, ratio.high) == pytest.approx((2.0, 2.0))
    assert alone.high - alone.low > 0.1


def test_one_source_clip_has_no_interval() -> None:
    found = evaluate(clips("a", "b", source=[7, 7]), [said(1, {"fine": (1.0, 2, 2)}), said(2, {"fine": (1.0, 2, 0)})], num_replicates=20)
    assert math.isnan(found.metrics["acc"].low)
    assert found.replicates == {}


def test_bad_input_is_refused_by_name() -> None:
    twice = Prediction(1, (384, 384), (), arms=(ArmAnswer("fine", "", None, 1.0, 2, 2),) * 2)
    with pytest.raises(ValueError, match="clip 1 was answered 2 times by the arm 'fine'"):
        evaluate(WORDS, [twice])
    with pytest.raises(ValueError, match="clip 1 was predicted twice"):
        FoveationMetric(num_replicates=0, seed=0, coarse_weight=1, fine_weight=1, truth=WORDS).update([SAID[0], SAID[0]])
    with pytest.raises(ValueError, match="clip 9"):
        evaluate(WORDS, [said(9, {"fine": (1.0, 2, 2)})])
    ordinary: GroundTruth = boxes(images=(1,))
    with pytest.raises(ValueError, match="this metric is for clips, got GroundTruth"):
        FoveationMetric(num_replicates=0, seed=0, coarse_weight=1, fine_weight=1, truth=ordinary)
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="coarse_weight must be a number of at least 0"):
            FoveationMetric(num_replicates=0, seed=0, coarse_weight=weight, fine_weight=1)


def test_an_arm_without_counted_tokens_has_no_loss_and_no_ratio() -> None:
    truth = clips((10.0, 10.0), (50.0, 50.0))
    arms = {"coarse": (0.0, 0, 0, (20.0, 10.0)), "fine": (0.0, 0, 0, (12.0, 10.0))}
    found = values(truth, [said(1, arms), said(2, arms)])
    assert not [name for name in found if name.startswith(("loss", "token_acc", "ratio_"))]
    assert found["px_ratio"] < 1
