from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordvlm.analysis.answers import read_lines
from coordvlm.analysis.bootstrap import paired_difference
from coordvlm.analysis.compare import Question, compare
from coordvlm.analysis.runs import LeftOut, Run, read_runs
from coordvlm.reports.compare_data import Comparison, PairResult
from coordvlm.utils.errors import ConfigError

QUESTION = Question(
    metric="AP", metrics=["AP50", "px_median", "duplicate_rate", "no_such"], verdict_metrics=["parse_rate", "duplicate_rate"],
    baseline=None, ignore=(), coverage=0.95, power=0.8, level_shares=[0.5, 0.9], num_snapshots=3, num_pictures=4,
)


def lines(run: Run) -> list[dict[str, object]]:
    return read_lines(run.predictions_file)


def runs_of(sweep: Path, *prefixes: str) -> list[Run]:
    return read_runs([f for f in sorted(sweep.iterdir()) if f.name.startswith(prefixes)])[0]


@pytest.fixture(scope="module")
def found(sweep: Path) -> Comparison:
    return compare(runs_of(sweep, ""), [LeftOut(Path("/x"), "why")], QUESTION, lines)


def pair(c: Comparison, first: str, second: str, metric: str = "AP") -> PairResult:
    return next(p for p in c.of(metric) if (p.first, p.second) == (first, second))


def test_a_planted_difference_is_found_with_its_sign(found: Comparison) -> None:
    for other in ("ce", "coordexp"):
        for metric, sign in (("AP", 1), ("px_median", -1), ("duplicate_rate", -1)):
            planted = pair(found, "hybrid", other, metric)
            assert planted.differs(found.level)
            assert sign * planted.value > 0
            assert sign * planted.low > 0
            assert sign * planted.high > 0
    mean = {g.short: np.mean([r.values["AP"] for r in found.runs if r.group == g.short]) for g in found.groups}
    assert pair(found, "hybrid", "ce").value == pytest.approx(mean["hybrid"] - mean["ce"])


def test_recipes_that_do_not_differ_are_not_said_to(found: Comparison) -> None:
    same = next(p for p in found.of("AP") if {p.first, p.second} == {"ce", "coordexp"})
    assert not same.differs(found.level)
    assert same.low < 0 < same.high
    assert same.detectable > abs(same.value)
    assert same.seeds == (3, 3)


def test_everything_beside_the_verdict_is_there(found: Comparison) -> None:
    assert found.metrics == ["AP", "AP50", "px_median", "duplicate_rate", "parse_rate"]
    assert any("no_such" in note for note in found.notes)
    assert found.left_out == [("/x", "why")]
    assert (found.num_images, found.readout, found.curve) == (40, "local", "val/AP")
    hybrid = next(g for g in found.groups if g.short == "hybrid")
    assert hybrid.floor is not None
    assert hybrid.floor.half_patch == 8
    assert np.median(hybrid.px_error) > hybrid.floor.error_quantile(0.5)
    assert hybrid.loss_share["text"] == pytest.approx((0.4, 0.4))
    assert hybrid.cost["train_seconds"] == 60
    assert hybrid.statuses["status_ok"] > hybrid.statuses["status_bad_arity"] > 0
    assert list(hybrid.snapshots)[-1] == 100
    assert len(hybrid.snapshots) == 3
    assert hybrid.reach[0].reached == 3
    assert set(hybrid.readouts) == {"local", "argmax"}
    assert hybrid.estimates["AP"].spread == pytest.approx(np.std([r.values["AP"] for r in found.runs if r.group == "hybrid"], ddof=1))


def test_disputed_images_come_with_a_scene_of_every_group(found: Comparison) -> None:
    assert 0 < len(found.disagreements) <= 4
    for d in found.disagreements:
        assert set(d.scenes) == {"ce", "coordexp", "hybrid"}
        assert all(s.image_id == d.image_id for s in d.scenes.values())
        assert d.gap > 0


def test_a_baseline_leaves_one_pair_per_other_group(sweep: Path) -> None:
    found = compare(runs_of(sweep, ""), [], replace(QUESTION, baseline="ce", num_pictures=0), lines)
    assert found.group_pairs() == [("coordexp", "ce"), ("hybrid", "ce")]
    assert found.baseline == "ce"
    assert found.disagreements == []


def test_one_seed_each_is_the_paired_bootstrap_of_two_runs(sweep: Path) -> None:
    runs = runs_of(sweep, "ce_0", "hybrid_0")
    found = compare(runs, [], replace(QUESTION, num_pictures=0), lines)
    ours = pair(found, "hybrid", "ce")
    a, b = (next(r for r in runs if r.choices["loss"] == name) for name in ("hybrid", "ce"))
    theirs = paired_difference(a.values["AP"], b.values["AP"], a.replicates["AP"], b.replicates["AP"]).difference
    assert ours.value == pytest.approx(theirs.value)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=0.05), pytest.approx(theirs.high, abs=0.05))
    assert ours.image_share == 1
    assert "One seed only of ce, hybrid" in found.notes[0]


def test_an_untouched_base_model_is_a_group_without_training(sweep: Path) -> None:
    runs = runs_of(sweep, "ce_", "hybrid_0")
    base = {**runs[-1].record, "choices": {}, "evaluated": {"what": "base model, untouched"}}
    runs[-1] = replace(runs[-1], record=base, curves={}, contract=None)
    found = compare(runs, [], replace(QUESTION, num_pictures=0), lines)
    assert [g.short for g in found.groups] == ["ce", "untouched"]
    assert found.curve == "val/AP"
    assert (len(found.groups[0].reach), len(found.groups[1].reach)) == (2, 0)
    assert found.groups[1].floor is None


def test_too_few_groups_are_refused_with_what_was_left_out(sweep: Path) -> None:
    rest = [LeftOut(Path("/broken"), "it failed")]
    with pytest.raises(ConfigError, match=r"all 3 runs are one recipe.*left out:\n  /broken: it failed"):
        compare(runs_of(sweep, "ce_"), rest, QUESTION, lines)
    with pytest.raises(ConfigError, match="no run can take part"):
        compare([], rest, QUESTION, lines)


def test_a_metric_that_is_not_there_is_refused_with_the_nearest(sweep: Path) -> None:
    with pytest.raises(ConfigError, match=r"metric=AP57: .* has no such metric; nearest: AP75|metric=AP57: .* nearest: AP5"):
        compare(runs_of(sweep, "ce_", "hybrid_"), [], replace(QUESTION, metric="AP57"), lines)
    with pytest.raises(ConfigError, match="baseline=mixed: no group"):
        compare(runs_of(sweep, "ce_", "hybrid_"), [], replace(QUESTION, baseline="mixed"), lines)


def test_an_undefined_metric_makes_no_claim(sweep: Path) -> None:
    runs = runs_of(sweep, "ce_", "hybrid_")
    runs[0] = replace(runs[0], values={**runs[0].values, "AP": math.nan})
    found = compare(runs, [], replace(QUESTION, num_pictures=0), lines)
    assert math.isnan(found.of("AP")[0].p_holm)
    assert not found.of("AP")[0].differs(found.level)


def test_unreadable_predictions_leave_a_run_out(sweep: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(sweep / "ce_0", tmp_path / "ce_0"))
    text = (broken / "predictions.jsonl").read_text().splitlines()
    (broken / "predictions.jsonl").write_text("\n".join(text[:-1]))
    runs = read_runs([broken])[0] + runs_of(sweep, "ce_1", "hybrid_0")
    found = compare(runs, [], replace(QUESTION, num_pictures=0), lines)
    assert found.left_out[0][0] == str(broken)
    assert "39 lines for 40 images" in found.left_out[0][1]
    assert len(found.runs) == 2


@pytest.mark.parametrize("change", [{"coverage": 95}, {"power": 0}, {"level_shares": [1.5]}, {"num_pictures": -1}])
def test_impossible_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="must"):
        replace(QUESTION, **change)  # type: ignore[arg-type]
