"""From runs to a ``Comparison``: groups, differences with what is known of their chance, and the evidence beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from coordvlm.analysis import curves
from coordvlm.analysis.answers import Answers, Line, condense, most_disputed, scenes_of, truth_of
from coordvlm.analysis.foveation import looking
from coordvlm.analysis.group_facts import cost, readouts, statuses
from coordvlm.analysis.groups import Group, contract_differences, counted, find_group, group_runs, looked
from coordvlm.analysis.notes import notes
from coordvlm.analysis.paired import Seeds, detectable, difference, holm, mean_interval
from coordvlm.analysis.runs import LeftOut, Run
from coordvlm.contracts import ClipTruth, GroundTruth, PointTruth
from coordvlm.metrics.floor import Floor
from coordvlm.reports.compare_data import Comparison, Disagreement, Estimate, GroupResult, PairResult, RunRow
from coordvlm.reports.floor import floor_of
from coordvlm.reports.foveation_names import are_of_clips, is_struck
from coordvlm.reports.tables import describe, primary, task_of
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.overrides import hint, nearest

ReadLines = Callable[[Run], Sequence[Line]]


@dataclass(frozen=True)
class Question:
    """What is asked of the runs.

    Args:
        metric: what decides; None: AP, Acc@0.5 of phrases, pck384_5 of counting, or acc of clips. metrics: what else is compared, where the
            task has it.
        verdict_metrics: those named in the verdicts.
        baseline: compare every group with this one only; None compares every pair.
        ignore: settings that make no group. coverage: of intervals. power: of the detectable difference.
        level_shares: levels to be reached, as shares of the best last value. num_snapshots, num_pictures: at most.
    """

    metric: str | None
    metrics: Sequence[str]
    verdict_metrics: Sequence[str]
    baseline: str | None
    ignore: Sequence[str]
    coverage: float
    power: float
    level_shares: Sequence[float]
    num_snapshots: int
    num_pictures: int

    def __post_init__(self) -> None:
        for name, value in (("coverage", self.coverage), ("power", self.power), *(("levels", s) for s in self.level_shares)):
            if not 0 < value < 1:
                raise ConfigError(f"{name} must lie between 0 and 1, got {value}")
        for name, count in (("snapshots", self.num_snapshots), ("pictures", self.num_pictures)):
            if count < 0:
                raise ConfigError(f"{name} must not be negative, got {count}")
        if struck := [m for m in (self.metric, *self.metrics, *self.verdict_metrics) if m is not None and is_struck(m)]:
            raise ConfigError(
                f"{struck[0]} compares a fine pass with a coarse one that was not trained with the same weight: it is no evidence, and "
                "nothing is decided by it"
            )


def compare(runs: Sequence[Run], left_out: Sequence[LeftOut], question: Question, read: ReadLines) -> Comparison:
    """Compare runs of one protocol (``groups.require_one_protocol``).

    Args:
        left_out: folders that take no part, to be listed. read: a run's predictions; called once or twice for each run.
    Raises:
        ConfigError: fewer than two groups (of clips one will do: its arms are compared), a metric that a run lacks, or a baseline that is
            none of the groups.
    """
    chosen = question.metric or primary(runs[0].values if runs else ())
    truth, answers, unread = _answers(runs, read)
    groups, repeated = group_runs([run for run in runs if run.folder in answers], ignore=question.ignore)
    rest = [*left_out, *unread, *repeated]
    _require_enough(groups, rest)
    assert truth is not None, "groups have answers"
    members = [run for group in groups for run in group.runs]
    metrics, absent = _metrics(members, question, chosen)
    inner = [group.runs for group in groups if all(run.curves for run in group.runs)]  # an untouched base model has no training
    column = curves.curve_column([run for runs in inner for run in runs], chosen) if inner else ""
    steps = curves.snapshot_steps(inner, column, question.num_snapshots) if column and question.num_snapshots else []
    wanted = curves.levels(inner, column, question.level_shares) if column else []
    floors = _floors(groups, truth)
    first = members[0]
    # what the replicates draw
    of_images = "phrases" in first.counts or counted(first)
    num_images = first.counts["source_clips" if looked(first) else "images"] if of_images or looked(first) else len(first.image_ids)
    results = [
        _result(group, answers, floors[group.name], column, wanted, steps, num_images=num_images, coverage=question.coverage)
        for group in groups
    ]
    pairs, baseline = _pairs(groups, metrics, question, chosen, num_images)
    contracts = contract_differences(groups)
    return Comparison(
        metric=chosen, metrics=metrics, verdict_metrics=[m for m in question.verdict_metrics if m in metrics], groups=results,
        pairs=pairs, runs=[_row(run, group) for group in groups for run in group.runs],
        left_out=[(str(x.folder), x.reason) for x in rest], num_images=num_images,
        coverage=question.coverage, power=question.power, baseline=baseline, readout=_readout(members),
        protocol={k: v for k, v in first.protocol.items() if k != "readout" or not (counted(first) or looked(first))},
        protocol_hash=first.protocol_hash if len({run.protocol_hash for run in members}) == 1 else "", contracts=contracts, curve=column,
        exact_time=all(curves.logs_time(runs) for runs in inner),
        notes=notes(groups, absent=absent, contracts=contracts),
        disagreements=[] if looked(first) else _disputed(groups, answers, read, question.num_pictures),
        foveation=looking(groups, num_clips=num_images, coverage=question.coverage) if looked(first) else None,
    )


def _require_enough(groups: Sequence[Group], left_out: Sequence[LeftOut]) -> None:
    if len(groups) > 1 or (groups and looked(groups[0].runs[0])):
        return
    what = "no run can take part" if not groups else f"all {len(groups[0].runs)} runs are one recipe: they differ in nothing but the seed"
    rest = "".join(f"\n  {x.folder}: {x.reason}" for x in left_out[:10])
    more = f"\n  and {len(left_out) - 10} more" if len(left_out) > 10 else ""
    raise ConfigError(f"a comparison needs two groups of runs, but {what}" + (f"; left out:{rest}{more}" if left_out else ""))


def _metrics(runs: Sequence[Run], question: Question, metric: str) -> tuple[list[str], list[str]]:
    """What all runs measured, the deciding metric first; and what was asked for but is not there."""
    there = set.intersection(*({m for m in run.replicates if m in run.values} for run in runs))
    if metric not in there:
        lacking = next(run for run in runs if metric not in run.replicates or metric not in run.values)
        raise ConfigError(f"metric={metric}: {lacking.folder} has no such metric{hint(nearest(metric, sorted(there)))}")
    mine = [m for m in (*question.metrics, *question.verdict_metrics) if task_of(m) in ("", task_of(primary(there)))]
    asked = list(dict.fromkeys((metric, *mine)))
    bare = "pck384_5" in there or are_of_clips(there)  # counting and clips have no parser and match no boxes
    missed = [m for m in asked if m not in there and task_of(m) != "video" and (task_of(m) or not bare)]  # clips have words or points
    return [m for m in asked if m in there], missed


def _answers(runs: Sequence[Run], read: ReadLines) -> tuple[GroundTruth | None, dict[Path, Answers], list[LeftOut]]:
    """The truth of the first readable file (the protocol says it is everyone's), condensed answers by folder, and unreadable runs."""
    truth: GroundTruth | None = None
    out: dict[Path, Answers] = {}
    rest = []
    for run in runs:
        try:
            lines = read(run)
            found = condense(lines, where=run.predictions_file, any_unmarked=_any_unmarked(run), arm=_main_arm(run))
            if not np.array_equal(found.image_ids, np.sort(run.image_ids)):
                rule = "must hold the images of the replicates, one line each"
                raise DataError(rule, where=run.predictions_file, value=f"{len(found.image_ids)} lines for {len(run.image_ids)} images")
            truth = truth_of(lines) if truth is None else truth
        except DataError as error:
            rest.append(LeftOut(run.folder, str(error)))
        else:
            out[run.folder] = found
    return truth, out, rest


def _readout(runs: Sequence[Run]) -> str:
    """The one read-out, or in counting every recipe's own."""
    return ", ".join(dict.fromkeys(str(run.protocol.get("readout", "")) for run in runs))


def _main_arm(run: Run) -> str:
    """The way of looking that a run of clips reports."""
    return "coarse" if run.config.get("module.fine_weight") == 0 else "fine"


def _any_unmarked(run: Run) -> bool:
    """Whether its counting was measured to the nearest unmarked object; the configuration of an ``eval`` need not say so."""
    return bool(run.counts.get("measured_to_any_unmarked", 0))


def _floors(groups: Sequence[Group], truth: GroundTruth) -> dict[str, Floor | None]:
    """The localisation floor of each group; None for points and clips, and where no checkpoint tells the contract. Equal ones are measured
    once."""
    if isinstance(truth, PointTruth | ClipTruth):
        return {group.name: None for group in groups}
    known: dict[str, Floor] = {}
    out: dict[str, Floor | None] = {}
    for group in groups:
        contract = next((run.contract for run in group.runs if run.contract is not None), None)
        if contract is not None and contract.hash() not in known:
            known[contract.hash()] = floor_of(truth, contract)
        out[group.name] = None if contract is None else known[contract.hash()]
    return out


def _seeds(group: Group, metric: str) -> Seeds:
    return Seeds(
        np.asarray([run.values[metric] for run in group.runs], dtype=np.float64), np.stack([run.replicates[metric] for run in group.runs])
    )


def _result(
    group: Group, answers: Mapping[Path, Answers], floor: Floor | None, column: str, wanted: Sequence[float], steps: Sequence[int], *,
    num_images: int, coverage: float,
) -> GroupResult:
    names = [m for m in group.runs[0].values if all(m in run.values and m in run.replicates for run in group.runs)]
    estimates = {}
    for name in names:
        seeds = _seeds(group, name)
        found = mean_interval(seeds, num_images=num_images, coverage=coverage)
        estimates[name] = Estimate(found.value, found.low, found.high, seeds.spread())
    runs = group.runs
    logged = bool(column) and all(column in run.curves for run in runs)
    return GroupResult(
        name=group.name, short=group.short, seeds=group.seeds, estimates=estimates, readouts=readouts(runs), statuses=statuses(runs),
        px_error=np.concatenate([answers[run.folder].px_error for run in runs]), floor=floor, cost=cost(runs),
        loss_share=curves.loss_share(runs), grad_share=curves.grad_share(runs), curves=curves.bands(runs),
        reach=curves.reach(runs, column, wanted) if logged else (),
        snapshots=curves.snapshot(runs, column, steps) if logged else {},
    )


def _pairs(
    groups: Sequence[Group], metrics: Sequence[str], question: Question, decides: str, num_images: int
) -> tuple[list[PairResult], str]:
    if question.baseline is None:
        chosen, baseline = list(combinations(groups, 2)), ""
    else:
        base = find_group(groups, question.baseline)
        chosen, baseline = [(group, base) for group in groups if group is not base], base.short
    if not baseline:  # the better one first
        sign = describe(decides)[1] or 1
        chosen = [(a, b) if sign * (_mean(a, decides) - _mean(b, decides)) >= 0 else (b, a) for a, b in chosen]
    out = []
    for metric in metrics:
        found = [
            difference(_seeds(a, metric), _seeds(b, metric), num_images=num_images, coverage=question.coverage) for a, b in chosen
        ]
        corrected = holm([d.p for d in found])
        tested = sum(math.isfinite(p) for p in corrected)
        for (a, b), d, p in zip(chosen, found, corrected, strict=True):
            least = detectable(d, level=1 - question.coverage, power=question.power, comparisons=tested)
            out.append(PairResult(
                first=a.short, second=b.short, metric=metric, value=d.value, low=d.low, high=d.high, p=d.p, p_holm=p, se=d.se, df=d.df,
                detectable=least, image_share=d.image_share, seeds=(len(a.runs), len(b.runs)),
            ))
    return out, baseline


def _mean(group: Group, metric: str) -> float:
    return float(np.mean([run.values[metric] for run in group.runs]))


def _row(run: Run, group: Group) -> RunRow:
    git = run.record.get("git") or {}
    commit = str(git.get("commit") or "")[:12] + ("+" if git.get("dirty") else "")
    return RunRow(run.name, str(run.folder), group.short, run.seed, str(run.record.get("started")), commit, run.values)


def _disputed(groups: Sequence[Group], answers: Mapping[Path, Answers], read: ReadLines, count: int) -> list[Disagreement]:
    """Images by disagreement; of each group the seed with the median score on the image is shown."""
    picked = most_disputed({g.short: [answers[run.folder] for run in g.runs] for g in groups}, count) if count else []
    wanted: dict[Path, set[int]] = {}
    shown: dict[tuple[int, str], Run] = {}
    for image, _, _ in picked:
        for group in groups:
            score = [answers[run.folder].score[np.searchsorted(answers[run.folder].image_ids, image)] for run in group.runs]
            run = group.runs[int(np.argsort(score, kind="stable")[(len(score) - 1) // 2])]
            shown[image, group.short] = run
            wanted.setdefault(run.folder, set()).add(image)
    by_folder = {run.folder: run for run in shown.values()}
    drawn = {
        f: scenes_of([line for line in read(by_folder[f]) if int(line["id"]) in ids], any_unmarked=_any_unmarked(by_folder[f]))
        for f, ids in wanted.items()
    }
    return [
        Disagreement(
            image, gap, scores, {g.short: drawn[shown[image, g.short].folder][image] for g in groups},
            {g.short: shown[image, g.short].seed for g in groups},
        )
        for image, gap, scores in picked
    ]
