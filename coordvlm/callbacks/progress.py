"""The progress of a run: a rich bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

#: Seconds between new values on the bar.
_REFRESH = 0.5


class ProgressReport(ProgressBar):
    """Step, loss per term, images per second and time left over *all* steps; validation and test have bars of their own.

    Args:
        every_seconds: between lines when the output is not a terminal.
    """

    def __init__(self, every_seconds: float) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self.console = Console()
        self._enabled = True
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said = self._mark = time.perf_counter()
        self._images, self._rate = 0, 0.0
        self._started_at = (0, time.perf_counter())

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    # ------------------------------------------------------------------- train
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._started_at = (trainer.global_step, time.perf_counter())
        self._said = self._mark = time.perf_counter()
        self._begin("train", self._total_steps(trainer), trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch) * trainer.world_size
        now = time.perf_counter()
        if now - self._mark > 0.5:
            self._rate = self._images / (now - self._mark)
        if self._progress is not None:
            if now - self._said >= _REFRESH:  # reading a value waits for the device
                self._progress.update(self._tasks["train"], terms=self._terms(trainer))
                self._said = now
            self._progress.update(self._tasks["train"], completed=trainer.global_step)
        elif self._enabled and now - self._said >= self.every_seconds:
            done, started = self._started_at
            total = self._total_steps(trainer)
            rate = (trainer.global_step - done) / (now - started)
            left = f", {_clock((total - trainer.global_step) / rate)} left" if total and rate > 0 else ""
            step = f"step {trainer.global_step}{f' / {total}' if total else ''}"
            self.console.print(f"{step}  {self._terms(trainer)}{left}", highlight=False, soft_wrap=True)
            self._said = now
        if now - self._mark > 5:  # images/s over the last seconds
            self._images, self._mark = 0, now

    def _terms(self, trainer: lightning.Trainer) -> str:
        values = trainer.callback_metrics
        terms = {k.removeprefix("train_term/"): float(v) for k, v in values.items() if k.startswith("train_term/")}
        shown = [f"{name} {value:.3g}" for name, value in terms.items()]
        if found := next((name for name in ("val/AP", "val/acc_50", "val/pck384_5") if name in values), None):
            shown.append(f"{found.replace('/', ' ')} {float(values[found]):.3f}")
        return "  ".join([*shown, f"{self._rate:.0f} images/s"])

    @staticmethod
    def _total_steps(trainer: lightning.Trainer) -> int | None:
        total = trainer.estimated_stepping_batches
        return int(total) if total != float("inf") else None

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._end()

    # ----------------------------------------------------------- validate, test
    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._begin("validate", _sum(trainer.num_val_batches))

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance("validate")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._finish("validate")
        self._images, self._mark = 0, time.perf_counter()

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._begin("evaluate", _sum(trainer.num_test_batches))

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance("evaluate")

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._end()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        self._end()

    # ------------------------------------------------------------------ plumbing
    def _begin(self, name: str, total: int | None, completed: int = 0) -> None:
        if not self._enabled or not self.console.is_terminal:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[terms]}"),
                console=self.console,
                refresh_per_second=4,
            )
            self._progress.start()
        self._tasks[name] = self._progress.add_task(name, total=total, completed=completed, terms="")

    def _advance(self, name: str) -> None:
        if self._progress is not None and name in self._tasks:
            self._progress.advance(self._tasks[name])

    def _finish(self, name: str) -> None:
        if self._progress is not None and name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._tasks = None, {}


def _sum(batches: Any) -> int | None:
    total = sum(batches) if isinstance(batches, list) else batches
    return int(total) if total != float("inf") else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
