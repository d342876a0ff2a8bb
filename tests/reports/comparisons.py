"""A comparison by hand, for tests of words, page and files."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from coordvlm.reports.compare_data import Band, Comparison, Disagreement, Estimate, GroupResult, PairResult, Reach, RunRow
from coordvlm.reports.floor import floor_of
from coordvlm.reports.gallery import scenes
from tests.reports.conftest import draw_image, make_contract, make_run


def pair(metric: str = "AP", value: float = 0.031, low: float = 0.012, high: float = 0.05, p: float = 0.001, **changes: Any) -> PairResult:
    base = PairResult(
        first="hybrid", second="ce", metric=metric, value=value, low=low, high=high, p=p, p_holm=p, se=0.01, df=8, detectable=0.03,
        image_share=0.4, seeds=(5, 5),
    )
    return replace(base, **changes)


def band(last: float) -> Band:
    values = last * np.array([0.3, 0.7, 1.0])
    return Band(np.array([10.0, 20.0, 30.0]), np.array([60.0, 120.0, 300.0]), values, values * 0.9, values * 1.1)


def group(name: str, ap: float, **changes: Any) -> GroupResult:
    rng = np.random.default_rng(len(name))
    summary = make_run()
    assert summary.truth is not None
    base = GroupResult(
        name=f"loss={name}", short=name, seeds=(0, 1, 2),
        estimates={"AP": Estimate(ap, ap - 0.02, ap + 0.02, 0.01), "duplicate_rate": Estimate(0.01, 0.0, 0.02, 0.004),
                   "px_median": Estimate(1.2, 1.1, 1.3, 0.05), "AR10": Estimate(math.nan)},
        readouts={"argmax": {"AP": Estimate(ap - 0.1, spread=0.01)}, "local": {"AP": Estimate(ap, spread=0.01)}},
        statuses={"status_ok": 90, "status_bad_arity": 8, "status_odd_one": 2, "records": 100, "images": 36, "images_truncated": 3},
        px_error=rng.rayleigh(1.5, 300), floor=floor_of(summary.truth, make_contract()),
        cost={"steps": 30.0, "train_seconds": 300.0, "peak rss_bytes": 2.0**30},
        loss_share={"text": (0.4, 0.3), "slots": (0.5, 0.6), "boxes": (0.1, 0.1)},
        curves={"val/AP": band(ap), "val/px_median": band(2.0), "val/coord_probe/entropy": band(1.0)},
        reach=(Reach(0.3, 3, 20.0, 120.0), Reach(0.6, 1, 30.0, math.nan), Reach(0.9, 0, math.nan, math.nan)),
        snapshots={10: Estimate(0.2, spread=0.01), 30: Estimate(ap, spread=0.01)},
    )
    return replace(base, **changes)


def comparison(**changes: Any) -> Comparison:
    summary = make_run()
    assert summary.truth is not None
    assert summary.evaluation is not None
    scene = {s.image_id: s for s in scenes(summary.truth, summary.predictions, summary.evaluation.pairs)}[3]
    truth = summary.truth
    base = Comparison(
        metric="AP", metrics=["AP", "duplicate_rate", "px_median"], verdict_metrics=["duplicate_rate", "px_median"],
        groups=[group("ce", 0.6), group("hybrid", 0.63)],
        pairs=[pair(), pair("duplicate_rate", 0.0, -0.01, 0.01, 0.9), pair("px_median", -0.2, -0.3, -0.1, 0.002)],
        runs=[RunRow(f"{g}_{s}", f"/out/{g}_{s}", g, s, "2026-01-01T10:00:00+00:00", "abc+", {"AP": 0.6 + s / 100})
              for g in ("ce", "hybrid") for s in range(3)],
        left_out=[("/out/broken", "only a finished run can be compared, this one is failed")], num_images=12, coverage=0.95, power=0.8,
        baseline="", readout="local", protocol={"split": "test", "readout": "local"}, protocol_hash="beefcafe", contracts={},
        curve="val/AP", exact_time=False, notes=["Two seeds only."],
        disagreements=[Disagreement(3, 0.4, {"ce": 0.5, "hybrid": 0.9}, {"ce": scene, "hybrid": scene}, {"ce": 0, "hybrid": 2})],
        load_image=lambda i: draw_image(truth, i), command="python -m coordvlm.compare runs=x",
    )
    return replace(base, **changes)
