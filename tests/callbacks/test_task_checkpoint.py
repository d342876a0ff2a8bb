from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from coordvlm.callbacks.checkpoint import steps_done
from coordvlm.callbacks.task_checkpoint import TaskCheckpoints
from coordvlm.utils.errors import ConfigError
from tests.callbacks.test_checkpoint import CONTRACT, Model, Trainer

TASKS = {"regression": {"monitor": "val/px", "mode": "min"}, "classification": {"monitor": "val/done", "mode": "max"}}


def made(folder: Path, *, tasks: Any = TASKS, patience: Any = None) -> TaskCheckpoints:
    return TaskCheckpoints(folder, CONTRACT, monitor="val/main", tasks=tasks, patience=patience)


class Run:
    """Validations one after the other, ten steps apart."""

    def __init__(self, callback: TaskCheckpoints) -> None:
        self.callback, self.model = callback, Model(3, 2)
        self.trainer: Any = Trainer()
        self.trainer.should_stop = False

    def validate(self, px: float, done: float, main: float = 0.0) -> dict[str, int]:
        """Gives the step of every checkpoint there is."""
        self.trainer.global_step += 10
        self.trainer.callback_metrics = {k: torch.tensor(v) for k, v in {"val/px": px, "val/done": done, "val/main": main}.items()}
        self.callback.on_validation_end(self.trainer, self.model)  # type: ignore[arg-type]
        return {p.name: steps_done(p / "trainer.ckpt") for p in self.callback.folder.iterdir()}


def test_each_task_has_its_own_best_beside_the_runs(tmp_path: Path) -> None:
    """The error falls until the second validation, the accuracy rises until the third; the run's own metric is best at the first."""
    run = Run(made(tmp_path))
    for px, done, main in ((9.0, 0.5, 0.9), (4.0, 0.4, 0.8), (5.0, 0.7, 0.7), (4.0, 0.7, 0.6)):
        found = run.validate(px, done, main)
    assert found == {"last": 40, "best": 10, "best_regression": 20, "best_classification": 30}


def test_training_ends_only_when_every_task_is_out_of_patience(tmp_path: Path) -> None:
    """One task stops improving at the first validation, the other goes on until the fourth."""
    run = Run(made(tmp_path, patience=2))
    stops = []
    for done in (0.1, 0.2, 0.3, 0.4, 0.4, 0.4):
        run.validate(3.0, done)
        stops.append(run.trainer.should_stop)
    assert stops == [False] * 5 + [True]
    assert run.callback.findings()["task_checkpoints"]["stopped_early_at"] == 60


def test_a_task_that_improves_late_counts_from_the_start_again(tmp_path: Path) -> None:
    run = Run(made(tmp_path, patience=2))
    errors, accuracies = (3.0, 3.0, 3.0, 2.0, 2.0, 2.0), (0.1, 0.2, 0.3, 0.3, 0.3, 0.3)
    stops = []
    for px, done in zip(errors, accuracies, strict=True):
        run.validate(px, done)
        stops.append(run.trainer.should_stop)
    assert stops == [False] * 5 + [True]


def test_without_patience_it_never_ends(tmp_path: Path) -> None:
    run = Run(made(tmp_path))
    for _ in range(8):
        run.validate(3.0, 0.1)
    assert not run.trainer.should_stop


def test_an_undefined_value_is_no_progress(tmp_path: Path) -> None:
    run = Run(made(tmp_path, patience=2))
    assert "best_regression" not in run.validate(math.nan, 0.5)
    json.dumps(run.callback.findings(), allow_nan=False)
    assert run.validate(7.0, math.nan)["best_regression"] == 20
    assert run.validate(math.nan, math.nan)["best_classification"] == 10
    assert not run.trainer.should_stop
    run.validate(math.nan, math.nan)
    assert run.trainer.should_stop


def test_patience_that_is_left_and_the_bests_go_with_the_checkpoint(tmp_path: Path) -> None:
    """The state as ``last`` holds it, which is written inside the same validation."""
    first = Run(made(tmp_path / "a", patience=3))
    saved: list[dict[str, Any]] = []
    first.trainer.save_checkpoint = lambda path: (saved.append(first.callback.state_dict()), torch.save({"global_step": 1}, path))
    for px in (2.0, 3.0, 3.0):
        first.validate(px, 0.5)
    second = Run(made(tmp_path / "b", patience=3))
    second.callback.load_state_dict(saved[-1])
    found = second.validate(2.5, 0.5)
    assert second.trainer.should_stop
    assert set(found) == {"last"}  # nor is it a new best of anything


def test_a_resumed_run_takes_the_tasks_checkpoints_over(tmp_path: Path) -> None:
    first = Run(made(tmp_path / "a"))
    first.validate(2.0, 0.5)
    first.validate(3.0, 0.6)
    second = Run(made(tmp_path / "b"))
    second.callback.inherit(last=tmp_path / "a" / "last", best=tmp_path / "a" / "best")
    second.callback.on_train_start(second.trainer, second.model)  # type: ignore[arg-type]
    found = {p.name: steps_done(p / "trainer.ckpt") for p in (tmp_path / "b").iterdir()}
    assert found == {"last": 20, "best": 10, "best_regression": 10, "best_classification": 20}


def test_validation_outside_training_counts_for_nothing(tmp_path: Path) -> None:
    run = Run(made(tmp_path / "none", patience=1))
    run.trainer.state = SimpleNamespace(fn="validate")
    run.trainer.callback_metrics = {}
    run.callback.on_validation_end(run.trainer, run.model)  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
    assert not run.trainer.should_stop


class Still(lightning.LightningModule):
    """Learns nothing and logs a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.w.sum() * 0

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log_dict({"val/px": 1.0, "val/done": 1.0, "val/main": 1.0})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def trained_state(self) -> dict[str, Tensor]:
        return {"w": self.w.detach()}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_stops_when_told(tmp_path: Path) -> None:
    """In the middle of an epoch, after the third validation: one best and two without progress."""
    callback = made(tmp_path, patience=2)
    data = torch.utils.data.DataLoader(torch.zeros(50, 1))  # type: ignore[arg-type]
    run = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=40, max_epochs=-1, val_check_interval=5, callbacks=[Windowed(), callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=1,
    )  # fmt: skip
    run.fit(Still(), data, data)
    assert run.global_step == 15
    assert {p.name for p in tmp_path.iterdir()} == {"last", "best", "best_regression", "best_classification"}


class Windowed(lightning.Callback):
    """Batches here are plain tensors; the checkpoint callback asks them for their window."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        batch.window = None


@pytest.mark.parametrize(
    ("tasks", "patience", "message"),
    [
        ({}, None, r"callbacks\.checkpoint\.tasks must name at least one"),
        ({"a": {"monitor": "x"}}, None, r"tasks\.a takes monitor and mode, got monitor"),
        ({"a": {"monitor": "x", "mode": "best"}}, None, r"tasks\.a\.mode must be max or min, got 'best'"),
        ({"a/b": {"monitor": "x", "mode": "max"}}, None, "'a/b' must be a plain name"),
        (TASKS, 0, r"patience must be a whole number of validations, at least 1, or null, got 0"),
        (TASKS, True, "got True"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, tasks: Any, patience: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, tasks=tasks, patience=patience)


def test_a_metric_that_is_not_logged_is_named(tmp_path: Path) -> None:
    run = Run(made(tmp_path, tasks={"a": {"monitor": "val/pck_5", "mode": "max"}}))
    with pytest.raises(ConfigError, match=r"tasks\.a\.monitor='val/pck_5' is not logged in validation; logged: val/done, val/main, val/px"):
        run.validate(1.0, 1.0)
