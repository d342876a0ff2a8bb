"""What a reader must know before believing a comparison: unequal budgets, few seeds, different code, data that chose the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coordvlm.analysis.groups import Group
from coordvlm.analysis.runs import Run

#: Settings and records that make up a training budget.
_BUDGET = ("steps", "data.batch_size", "trainer.accumulate_grad_batches")


def notes(
    groups: Sequence[Group], *, absent: Sequence[str], contracts: Mapping[str, Sequence[str]]
) -> list[str]:
    """Sentences, the gravest first."""
    runs = [run for group in groups for run in group.runs]
    out = [*_seeds(groups), *_budget(groups), *_selection(runs)]
    if contracts:
        out.append(f"The coordinate contracts differ in {', '.join(contracts)}: a difference may come from there.")
    commits = {str((run.record.get("git") or {}).get("commit"))[:12] for run in runs}
    if len(commits) > 1:
        out.append(f"The runs come from {len(commits)} different commits: {', '.join(sorted(commits))}.")
    if any((run.record.get("git") or {}).get("dirty") for run in runs):
        out.append("Some runs were made with uncommitted changes, so their code cannot be found again (+ after the commit).")
    hosts = {str(run.record.get("hostname")) for run in runs}
    if len(hosts) > 1:
        out.append(f"Wall times come from {len(hosts)} machines and cannot be compared: {', '.join(sorted(hosts))}.")
    if any("resumed_from" in run.record for run in runs):
        out.append("Some runs were resumed; their training time is that of the last part only.")
    if absent:
        out.append(f"Not measured in all runs, so not compared: {', '.join(absent)}.")
    return out


def _seeds(groups: Sequence[Group]) -> list[str]:
    counts = {group.short: len(group.runs) for group in groups}
    out = []
    if single := [name for name, n in counts.items() if n == 1]:
        out.append(
            f"One seed only of {', '.join(single)}: intervals with them know image noise and say nothing about another seed. "
            "Train at least three seeds before believing a difference between recipes."
        )
    if double := [name for name, n in counts.items() if n == 2]:
        out.append(f"Two seeds only of {', '.join(double)}: seed noise is poorly known, so intervals are wide.")
    if len({frozenset(group.seeds) for group in groups}) > 1:
        out.append("The groups do not have the same seeds.")
    return out


def _budget(groups: Sequence[Group]) -> list[str]:
    out = []
    for name in _BUDGET:
        by_group = {g.short: sorted({str(_budget_value(run, name)) for run in g.runs}) for g in groups}
        if len({tuple(v) for v in by_group.values()}) > 1 or any(len(v) > 1 for v in by_group.values()):
            shown = "; ".join(f"{group} {' or '.join(v)}" for group, v in by_group.items())
            out.append(f"The training budgets differ in {name} ({shown}).")
    return out


def _budget_value(run: Run, name: str) -> object:
    return run.record.get(name) if name == "steps" else run.config.get(name)


def _selection(runs: Sequence[Run]) -> list[str]:
    selected = {str((run.record.get("selected") or {}).get("on")) for run in runs}
    split = runs[0].protocol.get("split")
    if split in selected:
        return [f"Checkpoints were chosen on {split}, the data they are compared on: all numbers are optimistic."]
    return []
