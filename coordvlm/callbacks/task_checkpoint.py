"""The best checkpoint of each task beside ``best`` and ``last``, and a stop when no task improves any more."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning

from coordvlm.callbacks.checkpoint import TRAINER, FolderCheckpoint
from coordvlm.callbacks.monitors import logged_value, parse_monitors
from coordvlm.contracts import Contract
from coordvlm.utils.errors import ConfigError

_WHERE = "callbacks.checkpoint"


class TaskCheckpoints(FolderCheckpoint):
    """``FolderCheckpoint`` that also writes ``best_<task>`` when the task's own metric improves. ``best`` stays the run's result.

    Stopping and choosing are one callback, because a checkpoint must hold the patience that is left when it is written.

    Args:
        tasks: task -> ``{monitor: <logged metric>, mode: max|min}``; one is enough. All others as ``FolderCheckpoint``.
        patience: training ends after the validation in which every task has gone so many validations without a new best. A task that has
            run out of patience and then improves counts from the start again, as long as another one keeps the run alive. None: never.
    """

    def __init__(
        self, folder: Path, contract: Contract, *, monitor: str, tasks: Mapping[str, Mapping[str, Any]], patience: int | None
    ) -> None:
        super().__init__(folder, contract, monitor=monitor)
        if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 1):
            raise ConfigError(f"{_WHERE}.patience must be a whole number of validations, at least 1, or null, got {patience!r}")
        self.tasks, self.patience = parse_monitors(tasks, where=f"{_WHERE}.tasks"), patience
        self.stopped_at: int | None = None

    def inherit(self, **folders: Path) -> None:
        """Tasks' best checkpoints beside the resumed one are taken over, too."""
        beside = {f"best_{name}": folders["last"].parent / f"best_{name}" for name in self.tasks} if "last" in folders else {}
        super().inherit(**folders, **{name: folder for name, folder in beside.items() if (folder / TRAINER).is_file()})

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        improved = []
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            values = {name: logged_value(trainer, m.metric, where=f"{_WHERE}.tasks.{name}.monitor") for name, m in self.tasks.items()}
            improved = [name for name, m in self.tasks.items() if m.update(values[name], trainer.global_step)]
            self._stop_without_progress(trainer)
        super().on_validation_end(trainer, pl_module)  # after all of them: what it saves knows the new bests
        for name in improved:
            self._save(trainer, pl_module, f"best_{name}")

    def _stop_without_progress(self, trainer: lightning.Trainer) -> None:
        if self.patience is None or any(monitor.stale < self.patience for monitor in self.tasks.values()):
            return
        trainer.should_stop = True
        self.stopped_at = trainer.global_step
        if trainer.is_global_zero:
            bests = ", ".join(f"{name}: {m.metric} {m.best:.4g} at step {m.best_step}" for name, m in self.tasks.items())
            logging.getLogger(__name__).info(
                f"stopped early at step {trainer.global_step}: no new best in {self.patience} validations ({bests})"
            )

    def findings(self) -> dict[str, Any]:
        """For the record of the run."""
        bests = {name: {**m.state_dict(), "best": None if math.isnan(m.best) else m.best} for name, m in self.tasks.items()}
        return {"task_checkpoints": {"stopped_early_at": self.stopped_at, "patience": self.patience, "tasks": bests}}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "tasks": {name: monitor.state_dict() for name, monitor in self.tasks.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for name, state in state_dict["tasks"].items():
            if name in self.tasks:
                self.tasks[name].load_state_dict(state)
