"""Which terms of a recipe and which heads of a model belong to which task of a schedule, and what one task's loss is.

All other parameters (language model, adapter, new-token rows) are shared by all tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from coordvlm.losses.weighted_sum import LossOutput, WeightedSum
from coordvlm.modules.optim import OptimSettings
from coordvlm.utils.errors import ConfigError

#: In place of a list of names: all that no other task names.
REST = "rest"
_KEYS = ("terms", "heads", "optim")


@dataclass(frozen=True)
class Task:
    """One of several tasks that take turns on shared parameters.

    Args:
        terms: of the recipe, by name. heads: its own heads, by their name in ``Backbone.heads``.
        others: heads of the other tasks, which it leaves as they are.
        optim: settings of its optimiser.
    """

    name: str
    terms: frozenset[str]
    heads: frozenset[str]
    others: frozenset[str]
    optim: OptimSettings

    def trains(self, parameter: str) -> bool:
        """Whether a parameter of a ``Backbone`` is shared or this task's own, by its canonical name."""
        return head_of(parameter) not in self.others


def head_of(parameter: str) -> str | None:
    """The head a parameter of a ``Backbone`` belongs to, by its canonical name; None: no head's."""
    part, _, rest = parameter.partition(".")
    return rest.partition(".")[0] if part == "heads" else None


def split_tasks(
    given: Mapping[str, Mapping[str, Any]], *, terms: Collection[str], heads: Collection[str], optim: OptimSettings, one_optimizer: bool
) -> tuple[Task, ...]:
    """Tasks in the order given.

    Args:
        given: task -> ``terms`` and ``heads`` (lists of names, or ``rest`` for all that no other task names) and ``optim`` (fields of
            ``OptimSettings`` that differ from the run's).
        terms: of the recipe. heads: of the model. optim: of the run.
        one_optimizer: settings of a task's own are refused.
    Raises:
        ConfigError: fewer than two tasks, a term or head that no task or several tasks name, a name that does not exist, a task without
            terms, unknown keys.
    """
    if len(given) < 2:
        raise ConfigError(f"schedule.tasks must name at least two tasks, got {', '.join(given) or 'none'}; use schedule=single for one")
    for name, node in given.items():
        if unknown := sorted(set(node) - set(_KEYS)):
            raise ConfigError(f"schedule.tasks.{name} knows {', '.join(_KEYS)}, got {', '.join(unknown)}")
        if one_optimizer and node.get("optim"):
            raise ConfigError(f"schedule.tasks.{name}.optim: all tasks of schedule=alternate share one optimiser; use schedule=dual")
    of_terms, of_heads = _share_out(given, "terms", terms, "the recipe"), _share_out(given, "heads", heads, "the model")
    if empty := [name for name in given if not of_terms[name]]:
        raise ConfigError(f"schedule.tasks.{empty[0]} has no term in this recipe (terms: {', '.join(sorted(terms))}): nothing to train")
    return tuple(
        Task(name, of_terms[name], of_heads[name], frozenset(heads) - of_heads[name], _settings(name, node.get("optim") or {}, optim))
        for name, node in given.items()
    )


def _share_out(given: Mapping[str, Mapping[str, Any]], key: str, names: Collection[str], who: str) -> dict[str, frozenset[str]]:
    """Task -> its share of ``names``; each belongs to exactly one."""
    owner: dict[str, str] = {}
    takes_rest: list[str] = []
    for task, node in given.items():
        asked = node.get(key, ())
        if asked == REST:
            takes_rest.append(task)
            continue
        if isinstance(asked, str):
            raise ConfigError(f"schedule.tasks.{task}.{key} must be a list of names or {REST}, got {asked!r}")
        for name in asked:
            if name not in names:
                raise ConfigError(f"schedule.tasks.{task}.{key}: {who} has no {name!r}; it has {', '.join(sorted(names)) or 'none'}")
            if name in owner:
                raise ConfigError(f"schedule.tasks: {key} {name!r} belongs to {owner[name]} and to {task}; one task must own it")
            owner[name] = task
    if len(takes_rest) > 1:
        raise ConfigError(f"schedule.tasks: only one task can take {key}: {REST}, got {', '.join(takes_rest)}")
    left = sorted(set(names) - set(owner))
    if left and not takes_rest:
        raise ConfigError(f"schedule.tasks: no task names {key} {', '.join(left)} of {who}; add them to one, or give one {key}: {REST}")
    if takes_rest:
        owner |= dict.fromkeys(left, takes_rest[0])
    return {task: frozenset(n for n, t in owner.items() if t == task) for task in given}


def _settings(task: str, changes: Mapping[str, Any], optim: OptimSettings) -> OptimSettings:
    known = [f.name for f in fields(OptimSettings)]
    if unknown := sorted(set(changes) - set(known)):
        raise ConfigError(f"schedule.tasks.{task}.optim knows {', '.join(known)}, got {', '.join(unknown)}")
    return replace(optim, **changes)


def task_loss(task: Task, loss: LossOutput, losses: WeightedSum, counts: Mapping[str, int], *, scale: int) -> Tensor:
    """0-dim with graph: ``scale * sum_t w_t S_t / N_g(t)`` over the task's terms, exactly as if the others were not in the recipe.

    The others' terms are in the graph with factor 0, so that every parameter has a gradient in every backward: data parallel training
    waits for all of them.

    Args:
        loss: of one micro-batch. counts: items per group over the whole step. scale: W A of SPEC 4.4, what is divided by later.
    """
    shares = []
    for name, weight in losses.weights.items():
        share = loss.outputs[name].sum / max(counts[losses.groups[name]], 1)
        shares.append(share * (weight if name in task.terms else 0.0))
    return torch.stack(shares).sum() * scale


def require_own_heads(task: Task, loss: LossOutput, named: Collection[tuple[str, nn.Parameter]]) -> None:
    """Refuse a split in which a task's terms read the head of another: what they teach there would be lost.

    Args:
        loss: of any micro-batch, before its backward; a term without items has a graph, too.
    Raises:
        ConfigError: naming the task and the head.
    """
    foreign = [(name, p) for name, p in named if p.requires_grad and not task.trains(name)]
    total = torch.stack([loss.outputs[name].sum for name in sorted(task.terms)]).sum()
    if not foreign or not total.requires_grad:
        return
    gradients = torch.autograd.grad(total, [p for _, p in foreign], retain_graph=True, allow_unused=True)
    if reached := sorted({str(head_of(name)) for (name, _), g in zip(foreign, gradients, strict=True) if g is not None}):
        raise ConfigError(
            f"schedule.tasks.{task.name}: its terms {', '.join(sorted(task.terms))} train the head {reached[0]!r} of another task; "
            "give the term and its head to one task"
        )


def release_others(task: Task, named: Collection[tuple[str, nn.Parameter]]) -> None:
    """Take the gradients of the other tasks' heads away, so that no optimiser moves them."""
    for name, parameter in named:
        if not task.trains(name):
            parameter.grad = None
