"""Logged validation values that checkpoints are chosen by and training is stopped on, one per task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning

from coordvlm.utils.errors import ConfigError

MODES = ("max", "min")


@dataclass
class Monitor:
    """The best value so far of one logged metric.

    Args:
        metric: its name. mode: ``max`` or ``min``: which is better.
        best: NaN before the first number. best_step: of ``trainer.global_step``; -1: none. stale: validations since then.
    """

    metric: str
    mode: str
    best: float = math.nan
    best_step: int = -1
    stale: int = 0

    def update(self, value: float, step: int) -> bool:
        """Count a validation; returns whether it is the best so far. Undefined is worse than any number, and no improvement."""
        better = math.isnan(self.best) or (value > self.best if self.mode == "max" else value < self.best)
        if better and not math.isnan(value):
            self.best, self.best_step, self.stale = value, step, 0
            return True
        self.stale += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "best": self.best, "best_step": self.best_step, "stale": self.stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on; values of another metric would not compare, so they are left where they are."""
        if state["metric"] == self.metric:
            self.best, self.best_step, self.stale = state["best"], state["best_step"], state["stale"]


def parse_monitors(given: Mapping[str, Mapping[str, Any]], *, where: str) -> dict[str, Monitor]:
    """Name -> ``{monitor: <metric>, mode: max|min}``.

    Args:
        where: the key of the configuration, for messages.
    Raises:
        ConfigError: none, other keys, an unknown mode, a name that is no plain identifier (folders are named after it).
    """
    if not given:
        raise ConfigError(f"{where} must name at least one monitor")
    found = {}
    for name, node in given.items():
        if set(node) != {"monitor", "mode"}:
            raise ConfigError(f"{where}.{name} takes monitor and mode, got {', '.join(sorted(map(str, node))) or 'nothing'}")
        if node["mode"] not in MODES:
            raise ConfigError(f"{where}.{name}.mode must be {' or '.join(MODES)}, got {node['mode']!r}")
        if not str(name).isidentifier():
            raise ConfigError(f"{where}: {name!r} must be a plain name, it becomes part of a folder's")
        found[str(name)] = Monitor(str(node["monitor"]), node["mode"])
    return found


def logged_value(trainer: lightning.Trainer, metric: str, *, where: str) -> float:
    """What the last validation logged under a name.

    Raises:
        ConfigError: nothing, with what it did log.
    """
    value = trainer.callback_metrics.get(metric)
    if value is None:
        raise ConfigError(f"{where}={metric!r} is not logged in validation; logged: {', '.join(sorted(trainer.callback_metrics))}")
    return float(value)
