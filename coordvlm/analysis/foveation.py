"""Does looking pay? Arms of every recipe over seeds, and one verdict per recipe and kind of question.

A fine pass is compared with a coarse one only where both were trained alike: with the same weight in one run, or each by itself in runs
that differ in nothing but which pass they train (same steps, data and seeds; runs are then paired by seed). Everything else that bears
the name of a comparison (``ratio_unmatched`` and the like) is shown beside and never read for a verdict: ``_Reader`` refuses it.

Looking pays where fine is above coarse beyond the noise of seeds and clips, *and* falls when the queries are those of another clip, or
random. A gain that survives them comes from a second pass over the clip, not from where it looked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coordvlm.analysis.groups import Group, differing_keys
from coordvlm.analysis.paired import Seeds, mean_interval
from coordvlm.analysis.runs import FloatArray, Run
from coordvlm.reports.compare_data import Estimate
from coordvlm.reports.foveation_data import ArmsRow, Foveation, LookVerdict
from coordvlm.reports.foveation_names import ARM_WORDS, is_struck
from coordvlm.reports.foveation_words import OUTCOMES, sentence

__all__ = ["OUTCOMES", "looking"]

#: Metrics of an arm that its table shows.
ARM_METRICS = ("acc", "px384_median", "pck384_20", "loss")
CONTROLS = ("swap", "random")
#: What only a fine pass depends on, by the last part of its key (metric and sequence repeat them): runs that train coarse by itself may
#: have anything here.
_OF_FINE = ("queries", "first_query", "iterations", "iteration_loss", "coarse_weight", "fine_weight")
#: The read-out of points that are not tokens.
_HEADS = "heads"


def looking(groups: Sequence[Group], *, num_clips: int, coverage: float) -> Foveation:
    """Arms and verdicts of runs on the same clips.

    Args:
        num_clips: source clips, which the replicates draw.
    """
    first = groups[0].runs[0]
    tasks = tuple(sorted(name.removeprefix("kind_") for name in first.counts if name.startswith("kind_")))
    kinds = tasks if len(tasks) > 1 else ("",)
    rows = [_row(group, kind, num_clips, coverage) for kind in kinds for group in groups]
    verdicts = [
        _verdict(group, groups, kind, tasks, num_clips, coverage) for kind in kinds for group in groups if weights_of(group)["fine"] > 0
    ]
    return Foveation(coverage, tasks, rows, verdicts)


def weights_of(group: Group) -> dict[str, float]:
    """Arm -> weight of its pass in training."""
    config = group.runs[0].config
    return {arm: float(config[f"module.{arm}_weight"]) for arm in ("coarse", "fine")}


def _row(group: Group, kind: str, num_clips: int, coverage: float) -> ArmsRow:
    def known(name: str) -> Estimate | None:
        if not all(name in run.values and name in run.replicates for run in group.runs):
            return None
        return _mean([run.values[name] for run in group.runs], [run.replicates[name] for run in group.runs], num_clips, coverage)

    arms = {arm: {m: e for m in ARM_METRICS if (e := known(_name(f"{m}_{arm}", kind))) is not None} for arm in ARM_WORDS}
    names = [n for n in group.runs[0].values if n.partition(".")[0].startswith(_COMPARED) and n.partition(".")[2] == kind]
    compared = {n: e for n in names if (e := known(n)) is not None}
    trained = {arm: weight for arm, weight in weights_of(group).items() if weight > 0}
    return ArmsRow(group.short, kind, group.seeds, trained, {arm: found for arm, found in arms.items() if found}, compared)


_COMPARED = ("ratio_", "gain_acc", "px_ratio", "swap_drop", "random_drop", "swap_px_ratio", "random_px_ratio")


def _name(metric: str, kind: str) -> str:
    return f"{metric}.{kind}" if kind else metric


def _mean(values: Sequence[float], replicates: Sequence[FloatArray], num_clips: int, coverage: float) -> Estimate:
    seeds = Seeds(np.asarray(values, dtype=np.float64), np.stack(replicates))
    found = mean_interval(seeds, num_images=num_clips, coverage=coverage)
    return Estimate(found.value, found.low, found.high, seeds.spread())


@dataclass
class _Reader:
    """Reads metrics of runs for a verdict, keeps a list of them, and refuses what is no evidence.

    Args:
        kind: of question.
    """

    kind: str
    num_clips: int
    coverage: float
    read: tuple[str, ...] = ()

    def of(self, runs: Sequence[Run], metric: str) -> Seeds | None:
        """A metric over seeds; None where a run has none.

        Raises:
            ValueError: a metric that is no evidence.
        """
        name = _name(metric, self.kind)
        if is_struck(name):
            raise ValueError(f"{name} is no evidence about looking; a verdict cannot be made of it")
        if not all(name in run.values and name in run.replicates for run in runs):
            return None
        self.read = tuple(dict.fromkeys((*self.read, name)))
        return Seeds(
            np.asarray([run.values[name] for run in runs], dtype=np.float64), np.stack([run.replicates[name] for run in runs])
        )

    def estimate(self, found: Seeds) -> Estimate:
        return _mean(found.values.tolist(), list(found.replicates), self.num_clips, self.coverage)


@dataclass(frozen=True)
class _Coarse:
    """What a fine pass may be compared with. fine, coarse: runs, paired by seed. across: they are not the same runs. group: of coarse."""

    group: str
    fine: tuple[Run, ...]
    coarse: tuple[Run, ...]
    across: bool


def _verdict(
    group: Group, groups: Sequence[Group], kind: str, tasks: Sequence[str], num_clips: int, coverage: float
) -> LookVerdict:
    reader = _Reader(kind, num_clips, coverage)
    matched, why = _matched(group, groups)
    runs = matched.fine if matched is not None else group.runs
    evidence = _controls(reader, runs)
    if matched is not None:
        evidence |= _against_coarse(reader, matched)
    evidence |= _taught_otherwise(reader, group, groups)
    task = kind or ", ".join(tasks)
    outcome, words = sentence(
        evidence, task=task, group=group.short if len(groups) > 1 else "", why_unmatched=why, seeds=len(runs),
        alone=matched is not None and matched.across,
    )
    return LookVerdict(group.short, kind, matched.group if matched is not None else "", outcome, words, evidence, reader.read)


def _matched(group: Group, groups: Sequence[Group]) -> tuple[_Coarse | None, str]:
    """The coarse pass that was trained like this group's fine one, or why there is none."""
    weights = weights_of(group)
    if weights["coarse"] == weights["fine"]:
        return _Coarse(group.short, group.runs, group.runs, False), ""
    if weights["coarse"] > 0:
        return None, f"its coarse pass was trained with weight {weights['coarse']:g} and its fine pass with {weights['fine']:g}"
    reasons = []
    for other in groups:
        theirs = weights_of(other)
        if theirs["fine"] > 0 or theirs["coarse"] <= 0:
            continue
        found, reason = _alone(group, other, weights["fine"], theirs["coarse"])
        if found is not None:
            return found, ""
        reasons.append(reason)
    rest = f" ({'; '.join(reasons)})" if reasons else ""
    return None, f"its coarse pass was not trained, and no run trained coarse by itself with equal steps, seed and data{rest}"


def _alone(group: Group, other: Group, fine: float, coarse: float) -> tuple[_Coarse | None, str]:
    """Runs of a fine-only and a coarse-only recipe, paired by seed, or what keeps them from being a pair."""
    if fine != coarse:
        return None, f"{other.short} has weight {coarse:g} instead of {fine:g}"
    by_seed = {run.seed: run for run in other.runs}
    pairs = [(run, by_seed[run.seed]) for run in group.runs if run.seed in by_seed]
    if not pairs:
        return None, f"{other.short} has none of its seeds"
    if differing := [key for key in differing_keys([group.runs[0], other.runs[0]]) if key.rpartition(".")[2] not in _OF_FINE]:
        return None, f"{other.short} differs in {', '.join(differing[:3])}"
    if uneven := [f for f, c in pairs if f.record.get("steps") != c.record.get("steps")]:
        return None, f"{other.short} made another number of steps with seed {uneven[0].seed}"
    return _Coarse(other.short, tuple(f for f, _ in pairs), tuple(c for _, c in pairs), True), ""


def _controls(reader: _Reader, runs: Sequence[Run]) -> dict[str, Estimate]:
    """The fine pass, its controls, and what they cost it."""
    names = {}
    for arm in ("fine", *CONTROLS, "no_image", "no_text"):
        names[arm] = next((n for m in ("acc", "px384_median") if reader.of(runs, n := f"{m}_{arm}") is not None), "")
    names |= {f"{c}_drop": next((n for n in (f"{c}_drop_acc", f"{c}_px_ratio") if reader.of(runs, n) is not None), "") for c in CONTROLS}
    out: dict[str, Estimate] = {}
    for name in names.values():
        if name and (found := reader.of(runs, name)) is not None:
            out[name] = reader.estimate(found)
    return out


def _against_coarse(reader: _Reader, pair: _Coarse) -> dict[str, Estimate]:
    """Fine against coarse: from the runs' own metrics, or from two runs of each seed."""
    out: dict[str, Estimate] = {}
    for name, metric, how in (
        ("gain_acc", "acc", np.subtract), ("px_ratio", "px384_median", np.divide), ("ratio_matched", "loss", _other_way),
    ):
        if metric == "loss" and any(run.protocol.get("readout") == _HEADS for run in (*pair.fine, *pair.coarse)):
            continue  # tokens of points are then not trained
        coarse = reader.of(pair.coarse, f"{metric}_coarse")
        if coarse is None:
            continue
        if metric != "loss":
            out[f"{metric}_coarse"] = reader.estimate(coarse)
        found = reader.of(pair.fine, name) if not pair.across else None
        if pair.across and (fine := reader.of(pair.fine, f"{metric}_fine")) is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                values, replicates = how(fine.values, coarse.values), how(fine.replicates, coarse.replicates)
            found = Seeds(_finite(values), _finite(replicates))
        if found is not None:
            out[name] = reader.estimate(found)
    return out


def _other_way(fine: FloatArray, coarse: FloatArray) -> FloatArray:
    """The ratio of losses is coarse over fine."""
    return coarse / fine


def _finite(values: FloatArray) -> FloatArray:
    """A quotient by zero is undefined."""
    return np.where(np.isfinite(values), values, math.nan)


def _taught_otherwise(reader: _Reader, group: Group, groups: Sequence[Group]) -> Mapping[str, Estimate]:
    """``acc_fine`` of recipes that are the same but for where their queries came from in training."""
    out: dict[str, Estimate] = {}
    if group.runs[0].config.get("module.queries") != "llm":
        return out
    for other in groups:
        differing = differing_keys([group.runs[0], other.runs[0]])
        if "module.queries" not in differing or any(key.rpartition(".")[2] != "queries" for key in differing):
            continue
        found = reader.of(other.runs, "acc_fine") or reader.of(other.runs, "px384_median_fine")
        if found is not None:
            out[f"taught {other.runs[0].config['module.queries']}"] = reader.estimate(found)
    return out
