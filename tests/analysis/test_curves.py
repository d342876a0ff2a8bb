from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from coordvlm.analysis import curves
from coordvlm.analysis.runs import Run
from tests.analysis.test_groups import run


def logged(record: dict[str, Any] | None = None, **columns: tuple[list[float], list[float]]) -> Run:
    tables = {name.replace("__", "/"): (np.array(s, dtype=float), np.array(v, dtype=float)) for name, (s, v) in columns.items()}
    base = run("a")
    return dataclasses.replace(base, curves=tables, record={**base.record, "timings": {"train": 50.0}, "steps": 100, **(record or {})})


def test_bands_hold_the_steps_all_seeds_share() -> None:
    runs = [logged(val__AP=([9, 19, 29], [1, 2, 3])), logged(val__AP=([9, 29, 39], [3, 7, 8]))]
    band = curves.bands(runs)["val/AP"]
    assert band.steps.tolist() == [10, 30]
    assert (band.mean.tolist(), band.low.tolist(), band.high.tolist()) == ([2, 5], [1, 3], [3, 7])
    assert band.seconds.tolist() == [5, 15]  # 50 s over 100 steps


def test_bands_show_validation_and_probes_but_no_training_terms() -> None:
    one: tuple[list[float], list[float]] = ([0], [1])
    found = logged(val__AP=one, val__coord_probe__entropy=one, coord_probe__std=one, train_l1=one, lr=one)
    assert set(curves.bands([found])) == {"val/AP", "val/coord_probe/entropy", "coord_probe/std"}
    assert curves.bands([logged(val__AP=([0], [1])), logged(val__AP=([1], [1]))]) == {}


def test_a_logged_clock_is_used() -> None:
    clock = logged(time=([0, 10], [2, 42]), val__AP=([5], [1]))
    assert curves.seconds_at(clock, np.array([5.0])).tolist() == [22]
    assert curves.logs_time([clock])
    assert not curves.logs_time([clock, logged()])
    assert np.isnan(curves.seconds_at(logged({"timings": None}), np.array([5.0]))).all()


def test_when_a_level_was_reached() -> None:
    runs = [logged(val__AP=([9, 19, 29], [0.1, 0.5, 0.6])), logged(val__AP=([9, 19, 29], [0.3, 0.4, 0.4]))]
    easy, hard = curves.reach(runs, "val/AP", [0.3, 0.6])
    assert (easy.reached, easy.steps, easy.seconds) == (2, 15, 7.5)
    assert (hard.reached, hard.steps) == (1, 30)
    never = curves.reach(runs, "val/AP", [0.9])[0]
    assert never.reached == 0
    assert np.isnan(never.steps)


def test_levels_are_shares_of_the_best_last_value_and_lower_is_better_for_errors() -> None:
    groups = [[logged(val__AP=([9, 19], [0.9, 0.5]))], [logged(val__AP=([9, 19], [0.1, 0.4]))]]
    assert curves.levels(groups, "val/AP", [0.5, 0.9]) == pytest.approx([0.25, 0.45])
    errors = [[logged(val__px_median=([9, 19], [8, 4]))], [logged(val__px_median=([9, 19], [9, 2]))]]
    assert curves.levels(errors, "val/px_median", [0.5]) == [4]
    assert [curves.reach(g, "val/px_median", [4])[0].steps for g in errors] == [20, 20]


def test_snapshots_are_common_steps_with_the_last_one() -> None:
    a, b = (logged(val__AP=(list(range(0, 100, n)), [float(s) for s in range(0, 100, n)])) for n in (1, 3))
    steps = curves.snapshot_steps([[a], [b]], "val/AP", 4)
    assert steps[-1] == 99
    assert len(steps) == 4
    assert all(s % 3 == 0 for s in steps)
    found = curves.snapshot([a], "val/AP", steps)
    assert found[100].value == 99
    assert np.isnan(found[100].spread)
    assert curves.snapshot_steps([[logged(val__AP=([1], [1]))], [logged(val__AP=([2], [1]))]], "val/AP", 4) == []


def test_shares_of_the_loss_by_hand() -> None:
    steps = [0, 50, 100]
    parts = {"train_text_loss": [3, 2, 1], "train_coord_ce_loss": [0, 0, 1], "train_coord_loss": [1, 2, 2]}
    found = curves.loss_share([logged(**{name: (steps, values) for name, values in parts.items()})])  # type: ignore[arg-type, misc]
    assert found["text"] == pytest.approx((6 / 12, 1 / 4))
    assert found["slots"] == pytest.approx((1 / 12, 1 / 4))
    assert found["boxes"] == pytest.approx((5 / 12, 2 / 4))
    assert curves.loss_share([logged()]) == {}
    counting = {"train_text_loss": [0, 0, 0], "train_coord_ce_loss": [0, 0, 0], "train_coord_loss": [1, 1, 1], "train_done_loss": [3, 3, 0]}
    found = curves.loss_share([logged(**{name: (steps, values) for name, values in counting.items()})])  # type: ignore[arg-type, misc]
    assert found == {"slots": (0.0, 0.0), "points": pytest.approx((3 / 9, 1)), "done": pytest.approx((6 / 9, 0))}
    gradients = curves.grad_share([logged(train_grad_norm__text_ce=(steps, [1, 1, 1]), train_grad_norm__l1=(steps, [3, 3, 3]))])
    assert gradients == {"text_ce": pytest.approx((0.25, 0.25)), "l1": pytest.approx((0.75, 0.75))}


def test_the_curve_is_the_metric_s_or_ap_s() -> None:
    runs = [logged(val__AP=([0], [1]), val__AP50=([0], [1])), logged(val__AP=([0], [1]))]
    assert curves.curve_column(runs, "AP50") == "val/AP"
    assert curves.curve_column(runs[:1], "AP50") == "val/AP50"
    assert curves.curve_column([logged()], "AP") == ""
