"""Counting wired: the read-outs a recipe trains, and the counter that asks for points."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from coordvlm.build.model import Model
from coordvlm.contracts import Sample
from coordvlm.coords.grid import Grid
from coordvlm.data.source import Split
from coordvlm.losses.slots import ANSWER_ITEMS, QUESTION_ITEMS
from coordvlm.losses.weighted_sum import WeightedSum
from coordvlm.models.point_readout import POINT_NEEDS
from coordvlm.modules.counter import Counter, CountSettings
from coordvlm.utils.errors import ConfigError

#: Settings that other tasks have a say in and counting has not.
_FIXED = {"grammar": False, "score": "one"}
#: What every protocol says of the length of answers; here there are none, whatever decode.max_new_tokens is.
_TOKENS = {"max_new_tokens": 1}
#: Settings of the metric that decide its numbers.
_MEASURED = ("tolerance_px", "any_unmarked")


def point_readouts(needs: Collection[str]) -> tuple[str, ...]:
    """The read-outs whose fields a recipe trains, the preferred one first."""
    return tuple(name for name, reads in POINT_NEEDS.items() if reads <= set(needs))


def require_counting(losses: WeightedSum, *, task: str) -> None:
    """Refuse a recipe of another task.

    Raises:
        ConfigError: a recipe without a point to count by, a recipe of points in a task that has none, or a term on what a task has not.
    """
    recipe = f"this recipe ({', '.join(losses.weights)})"
    points, done = point_readouts(losses.needs), "done_logit" in losses.needs
    if task == "count" and not (points and done):
        lacking = "a point" if done else "whether all is marked (done_bce)"
        raise ConfigError(f"{recipe} does not teach {lacking}, which task=count needs; choose loss=spatial, three_stage_heads or a point_*")
    asks = losses.needs & {"done_logit", "point_xy", "token_next", "token_hit", "token_offset"}
    if task != "count" and asks:
        raise ConfigError(f"{recipe} reads {', '.join(sorted(asks))}, which only task=count has (data=dots, points, fsc147 ...)")
    losses.require_items(QUESTION_ITEMS if task == "count" else ANSWER_ITEMS, who=f"task={task}")


def teaches_done(cfg: DictConfig) -> bool:
    """Whether questions teach when all is marked."""
    return str(cfg.sequence.mode) != "regression"


def require_questions(cfg: DictConfig, losses: WeightedSum) -> None:
    """Refuse tasks in turns of which one is asked nothing.

    Raises:
        ConfigError: ``sequence.mode=regression`` and a task of the schedule that learns nothing but whether all is marked.
    """
    tasks: Any = OmegaConf.select(cfg, "schedule.tasks")  # schedule=single, and runs from before there were schedules, have none
    if not tasks or teaches_done(cfg):
        return
    done = {name for name, term in losses.terms.items() if term.items == "done"}
    for task, node in tasks.items():
        if (terms := node.get("terms")) and not isinstance(terms, str) and set(terms) <= done:
            raise ConfigError(
                f"schedule.tasks.{task} learns whether all is marked ({', '.join(terms)}), which sequence.mode=regression never asks: use "
                "sequence.mode=mixed, or schedule=single"
            )


def count_settings(cfg: DictConfig, losses: WeightedSum) -> dict[str, Any]:
    """``cfg.decode`` as plain values, its read-out settled, and what errors are measured to; a part of the evaluation protocol.

    Raises:
        ConfigError: a read-out that the recipe does not train; errors measured to a next object
            where there is none.
    """
    if cfg.sequence.target == "nearest" and not cfg.metrics.any_unmarked:
        raise ConfigError("sequence.target=nearest knows no next object to measure to: set metrics.any_unmarked=true")
    settings = {str(key): value for key, value in OmegaConf.to_container(cfg.decode).items()}  # type: ignore[union-attr]
    if not teaches_done(cfg) and settings["loop"]:
        raise ConfigError("sequence.mode=regression never asks whether all is marked, so no loop can end: set decode.loop=false")
    given = point_readouts(losses.needs)
    if settings["readout"] == "auto":
        settings["readout"] = given[0]
    if settings["readout"] not in given:
        raise ConfigError(f"decode.readout={settings['readout']} is not trained by this loss, which gives {', '.join(given)}")
    for key, value in _FIXED.items():
        if settings.get(key) != value:
            raise ConfigError(f"decode.{key} has no meaning in task=count: leave it at {value!r}, got {settings.get(key)!r}")
    return settings | _TOKENS | {name: cfg.metrics[name] for name in _MEASURED}


def build_counter(model: Model, settings: dict[str, Any], *, find: Callable[[int | str], Sample] | None) -> Counter:
    """What asks for points.

    Args:
        settings: of ``count_settings``. find: sample id -> sample, of the split that is counted.
    """
    names = {f.name for f in fields(CountSettings)}
    values = model.grid.bin_values() if isinstance(model.grid, Grid) else torch.empty(0)
    chosen = CountSettings(**{key: value for key, value in settings.items() if key in names})
    return Counter(model.backbone, model.encoder, chosen, bin_values=values, find=find)  # type: ignore[arg-type]


class FindSample:
    """Sample id -> sample of a split, in its first epoch."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._at = {int(i): at for at, i in enumerate(np.asarray(split.ids).tolist())}

    def __call__(self, sample_id: int | str) -> Sample:
        """An id that the split does not have is a ``KeyError``."""
        return self._split.sample(self._at[int(sample_id)], 0)
