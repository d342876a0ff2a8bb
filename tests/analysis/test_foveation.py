"""Whether looking pays: outcomes of runs whose chances are known, and what a verdict may be made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from coordvlm.analysis.foveation import OUTCOMES, _Reader, looking
from coordvlm.analysis.groups import group_runs
from coordvlm.analysis.runs import Run
from coordvlm.reports.foveation_data import Foveation, LookVerdict
from tests.analysis.looks import BLIND, NEAR, POINTS, SEEING, WORDS, run, with_values
from tests.metrics.clip_cases import clips

SEEDS = (0, 1, 2)


def found(runs: list[Run], num_clips: int = 200) -> Foveation:
    groups, rest = group_runs(runs, ignore=())
    assert not rest
    return looking(groups, num_clips=num_clips, coverage=0.95)


def verdict(runs: list[Run]) -> LookVerdict:
    (only,) = found(runs).verdicts
    return only


def alone(arms: Mapping[str, float] = SEEING, **options: Any) -> list[Run]:
    """Runs that train coarse by itself and fine by itself."""
    return [run(arms, seed=s, coarse=c, fine=1 - c, **options) for s in SEEDS for c in (1.0, 0.0)]


def test_fine_above_coarse_with_falling_controls_is_a_plan_that_is_used() -> None:
    said = verdict([run(seed=s) for s in SEEDS])
    assert (said.outcome, said.group, said.coarse) == ("used", "all runs", "all runs")
    assert said.words.startswith("qa: fine 0.9")
    assert said.words.endswith("; the plan is used.")
    for part in ("coarse 0.2", "swapped 0.", "random 0.", "no image 0.", "ratio_matched ", "fine − coarse +0."):
        assert part in said.words, part
    assert said.evidence["gain_acc"].low > 0.5


def test_no_difference_says_so_with_the_ratio() -> None:
    said = verdict([run(BLIND, seed=s, common=True) for s in SEEDS])
    assert said.outcome == "no_difference"
    assert "no difference shown: fine − coarse +0.00 [0.00, 0.00], ratio_matched 1.00 [1.00, 1.00]" in said.words


@pytest.mark.parametrize(("control", "word"), [("swap", "swapped"), ("random", "random")])
def test_a_gain_that_a_control_keeps_is_not_the_plan(control: str, word: str) -> None:
    said = verdict([run({**SEEING, control: 0.95}, seed=s) for s in SEEDS])
    assert said.outcome == "not_the_plan"
    assert f"with {word} queries it is not shown to be worse" in said.words


def test_fine_below_coarse_is_worse() -> None:
    assert verdict([run({**SEEING, "coarse": 0.99, "fine": 0.3}, seed=s) for s in SEEDS]).outcome == "worse"


def test_points_are_judged_by_the_ratio_of_their_errors() -> None:
    said = verdict([run(NEAR, seed=s, truth=POINTS) for s in SEEDS])
    assert said.outcome == "used"
    assert said.words.startswith("ball: fine 5.")
    assert "px of 384" in said.words
    assert "fine / coarse 0.1" in said.words
    assert verdict([run({**NEAR, "swap": 5.0}, seed=s, truth=POINTS) for s in SEEDS]).outcome == "not_the_plan"
    assert verdict([run({**NEAR, "coarse": 1.0}, seed=s, truth=POINTS) for s in SEEDS]).outcome == "worse"


def test_a_loss_of_tokens_that_heads_do_not_train_is_no_evidence() -> None:
    runs = [run(NEAR, seed=s, truth=POINTS) for s in SEEDS]
    heads = [replace(r, protocol={**r.protocol, "readout": "heads"}) for r in runs]
    assert "ratio_matched" in verdict(runs).evidence
    assert "ratio_matched" not in verdict(heads).evidence
    assert verdict(heads).outcome == "used"


def test_intervals_over_seeds_are_students() -> None:
    """Seeds that differ far more than clips can: the interval is that of t over the seeds' values."""
    gains = {0: 0.1, 1: 0.5, 2: 0.9}
    runs = []
    for seed, gain in gains.items():
        one = with_values(run(seed=seed), gain_acc=gain)
        still = {n: np.full_like(r, one.values[n]) for n, r in one.replicates.items()}
        runs.append(replace(one, replicates=still))
    low, high = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem(list(gains.values())))
    said = verdict(runs)
    assert (said.evidence["gain_acc"].low, said.evidence["gain_acc"].high) == pytest.approx((low, high), rel=0.02)
    assert said.outcome == "no_difference"  # 0.5 on average, and yet the seeds do not agree


# ------------------------------------------------------------ what is matched
def test_runs_that_train_one_pass_each_are_a_matched_pair() -> None:
    everything = alone()
    (said,) = found(everything).verdicts
    assert said.outcome == "used"
    assert said.group != said.coarse
    assert "coarse by itself 0.2" in said.words
    by = {(r.config["module.fine_weight"], r.seed): r for r in everything}
    ratios = [by[0.0, s].values["loss_coarse"] / by[1.0, s].values["loss_fine"] for s in SEEDS]
    assert said.evidence["ratio_matched"].value == pytest.approx(np.mean(ratios))
    gains = [by[1.0, s].values["acc_fine"] - by[0.0, s].values["acc_coarse"] for s in SEEDS]
    assert said.evidence["gain_acc"].value == pytest.approx(np.mean(gains))


def test_a_run_that_trained_fine_only_has_no_verdict() -> None:
    said = verdict([run(seed=s, coarse=0.0) for s in SEEDS])
    assert said.outcome == "open"
    assert "no verdict: its coarse pass was not trained" in said.words
    assert said.coarse == ""
    assert not {"acc_coarse", "gain_acc", "ratio_matched"} & said.evidence.keys()


def test_unequal_weights_have_no_verdict() -> None:
    said = verdict([run(seed=s, coarse=0.1) for s in SEEDS])
    assert said.outcome == "open"
    assert "weight 0.1 and its fine pass with 1" in said.words


@pytest.mark.parametrize(("change", "reason"), [
    ({"steps": 50}, "differs in trainer.max_steps"), ({"data__source__grid": 3}, "differs in data.source.grid"),
])  # fmt: skip
def test_runs_that_differ_in_more_than_the_pass_are_no_pair(change: dict[str, Any], reason: str) -> None:
    usual = {"data__source__grid": 5} if "data__source__grid" in change else {}
    runs = [run(seed=s, coarse=0.0, **usual) for s in SEEDS] + [run(seed=s, fine=0.0, **change) for s in SEEDS]
    said = verdict(runs)
    assert said.outcome == "open"
    assert reason in said.words


def test_other_seeds_fewer_steps_or_another_weight_are_no_pair() -> None:
    fine = [run(seed=s, coarse=0.0) for s in SEEDS]
    assert "none of its seeds" in verdict(fine + [run(seed=s + 5, fine=0.0) for s in SEEDS]).words
    stopped = [replace(r, record={**r.record, "steps": 7}) for r in (run(seed=s, fine=0.0) for s in SEEDS)]
    assert "another number of steps with seed 0" in verdict(fine + stopped).words
    assert "weight 2 instead of 1" in verdict(fine + [run(seed=s, coarse=2.0, fine=0.0) for s in SEEDS]).words


def test_what_only_the_fine_pass_reads_does_not_part_a_pair() -> None:
    runs = [run(seed=s, coarse=0.0, module__iterations=3) for s in SEEDS] + [run(seed=s, fine=0.0) for s in SEEDS]
    assert verdict(runs).outcome == "used"


def test_a_pair_is_made_of_the_seeds_both_have() -> None:
    runs = [r for r in alone() if r.config["module.fine_weight"] == 1 or r.seed == 1]
    said = verdict(runs)
    assert said.words.endswith("(one seed: the interval knows clip noise only).")


# ------------------------------------------------- what may be read
class Spy(Mapping[str, Any]):
    """Values that complain when one of those that are no evidence is read by its name."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values_ = values

    def __getitem__(self, name: str) -> Any:
        assert "unmatched" not in name, f"a verdict reads {name}"
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


def test_no_verdict_reads_an_unmatched_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scanned in three ways: the values are never looked up, their size changes nothing, and the list of what was read has none."""
    from coordvlm.analysis import foveation

    runs = [*alone(), *(run(seed=s, coarse=0.1) for s in SEEDS), *(run(seed=s) for s in SEEDS)]
    assert any("ratio_unmatched" in r.values for r in runs)
    expected = found(runs).verdicts
    wild = {"ratio_unmatched": 99.0, "gain_acc_unmatched": 0.99}
    changed = [with_values(r, **wild) if "ratio_unmatched" in r.values else r for r in runs]
    assert found(changed).verdicts == expected
    assert found(changed).rows != found(runs).rows  # they are shown
    monkeypatch.setattr(foveation, "_row", lambda *_: None)  # tables may read them
    spied = [replace(r, values=Spy(r.values), replicates=Spy(r.replicates)) for r in runs]
    assert found(spied).verdicts == expected
    for said in expected:
        assert said.read
        assert not [n for n in (*said.read, *said.evidence) if "unmatched" in n]
        assert "unmatched" not in said.words


@pytest.mark.parametrize("name", ["ratio_unmatched", "gain_acc_unmatched", "px_ratio_unmatched"])
def test_the_reader_of_verdicts_refuses_what_is_no_evidence(name: str) -> None:
    for kind in ("", "qa"):
        with pytest.raises(ValueError, match="is no evidence about looking"):
            _Reader(kind, 200, 0.95).of([run(coarse=0.0)], name)


def test_the_accuracy_of_a_coarse_pass_that_was_not_trained_changes_no_verdict() -> None:
    runs = alone()
    changed = [with_values(r, acc_coarse=0.9) if r.config["module.coarse_weight"] == 0 else r for r in runs]
    assert found(changed).verdicts == found(runs).verdicts


# --------------------------------------------------------- kinds, tables, JSON
def test_every_kind_of_question_has_its_own_verdict() -> None:
    kinds = ["qa", "global"] * 100
    truth = clips(*["word"] * 200, kinds=kinds)
    result = found([run(seed=s, truth=truth) for s in SEEDS])
    assert result.tasks == ("global", "qa")
    assert [(v.kind, v.outcome) for v in result.verdicts] == [("global", "used"), ("qa", "used")]
    assert result.verdicts[1].words.startswith("qa: fine 0.9")
    assert {n.rpartition(".")[2] for n in result.verdicts[1].read} == {"qa"}


def test_recipes_with_other_queries_stand_beside() -> None:
    runs = [run(seed=s) for s in SEEDS] + [run({**SEEING, "fine": 0.2}, seed=s, module__queries="random") for s in SEEDS]
    said = {v.group: v for v in found(runs).verdicts}
    assert "taught random queries 0." in said["llm"].words
    assert said["llm"].outcome == "used"
    assert "taught" not in said["random"].words


def test_the_json_is_strict_and_says_what_is_evidence() -> None:
    data = json.loads(json.dumps(found(alone()).to_json(), allow_nan=False))
    assert data["tasks"] == ["qa"]
    assert [v["outcome"] for v in data["verdicts"]] == ["used"]
    fine_only = next(r for r in data["rows"] if r["trained"] == {"fine": 1.0})
    assert fine_only["compared"]["ratio_unmatched"]["evidence"] is False
    assert fine_only["compared"]["swap_drop_acc"]["evidence"] is True
    assert set(fine_only["arms"]) == {"coarse", "fine", "swap", "random", "no_image"}
    assert data["verdicts"][0]["outcome"] in OUTCOMES


def test_a_control_that_was_not_evaluated_leaves_it_open() -> None:
    said = verdict([run({k: v for k, v in SEEING.items() if k != "swap"}, seed=s) for s in SEEDS])
    assert said.outcome == "open"
    assert "swapped queries were not evaluated" in said.words


def test_a_single_clip_leaves_it_open() -> None:
    runs = [run(seed=s, truth=clips(*["word"] * 20, kinds=["qa"] * 20)) for s in SEEDS]
    (said,) = found(runs, num_clips=1).verdicts
    assert said.outcome == "open"
    assert "has no interval" in said.words


def test_only_coarse_runs_have_arms_but_no_verdict() -> None:
    result = found([run(seed=s, fine=0.0) for s in SEEDS])
    assert result.verdicts == []
    assert result.rows[0].compared == {}
    assert WORDS.kinds[0] in result.tasks
