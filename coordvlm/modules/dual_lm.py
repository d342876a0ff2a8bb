"""``CoordLM`` whose terms are split between tasks that take turns: ``schedule=alternate`` and ``schedule=dual``.

A *window* is what one optimiser step of ``schedule=single`` trains on: all micro-batches that are accumulated. ``alternate`` gives whole
windows to the tasks in turn, with one optimiser. ``dual`` gives every window to all tasks, each with a forward, a backward and an optimiser
of its own: the second task starts from the weights that the first one has left.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from coordvlm.contracts import Batch
from coordvlm.losses.weighted_sum import LossOutput
from coordvlm.models.sharding import units
from coordvlm.modules.coord_lm import CoordLM
from coordvlm.modules.diagnostics import add_logs
from coordvlm.modules.optim import build_optimizer
from coordvlm.modules.tasks import release_others, require_own_heads, split_tasks, task_loss
from coordvlm.utils.errors import ConfigError


class TurnsLM(CoordLM):
    """What the two schedules share: the loss, the gradients and the norms of the task whose turn it is.

    Args:
        tasks: see ``split_tasks``. All others as ``CoordLM``.
    """

    one_optimizer = True

    def __init__(self, *, tasks: Mapping[str, Mapping[str, Any]], **common: Any) -> None:
        super().__init__(**common)
        self.tasks = split_tasks(
            tasks, terms=self.losses.weights, heads=list(self.backbone.heads), optim=self.optim, one_optimizer=self.one_optimizer
        )
        self.task = self.tasks[0]
        self._norms: dict[str, Tensor] = {}
        self._known: set[str] = set()  # tasks whose terms were seen to read no head of another

    @property
    def task_name(self) -> str:
        """Whose turn it is."""
        return self.task.name

    @property
    def clip_norm(self) -> float | None:
        return self.task.optim.clip_norm

    def step_loss(self) -> Tensor:
        """The task's part of the weighted loss of the window on this rank, 0-dim."""
        return torch.stack([self.losses.weights[name] * self._window[name] for name in sorted(self.task.terms)]).sum()

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        self._norms[self.task.name] = self._clip(optimizer)
        if self._logs_now():
            self.log_dict({f"grad_norm/{name}": norm for name, norm in self._norms.items()})

    def _forward_loss(self, batch: Batch, *, looks: bool) -> LossOutput:
        loss = super()._forward_loss(batch, looks=looks)
        assert batch.window is not None
        if self.task.name not in self._known:
            require_own_heads(self.task, loss, list(self.backbone.named_parameters()))
            self._known.add(self.task.name)
        scale = self.trainer.world_size * (batch.window.accumulate if self.automatic_optimization else 1)  # who divides later
        return replace(loss, total=task_loss(self.task, loss, self.losses, self._window_counts, scale=scale))

    def _release_others(self) -> None:
        release_others(self.task, list(self.backbone.named_parameters()))


class AlternateLM(TurnsLM):
    """``schedule=alternate``: one optimiser, whose step i (counted from 0) trains task i mod the number of tasks.

    The other tasks' heads have no gradient in a step and stay as they are. The logged losses of all terms are measured in every step.
    """

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        self.task = self.tasks[self.global_step % len(self.tasks)]
        return super().training_step(batch, batch_idx)

    def on_after_backward(self) -> None:
        self._release_others()


class DualLM(TurnsLM):
    """``schedule=dual``: per window and task one forward, one backward and one step of its own optimiser, with its own schedule.

    ``trainer.global_step`` counts windows: only the last task's step is counted. So ``max_steps``, logging and schedules mean what they
    mean in ``schedule=single``, and a step costs one more forward and backward. Micro-batches are kept until their window is complete.

    Raises:
        ConfigError: weights are shared out over processes (``trainer.strategy=fsdp``).
    """

    one_optimizer = False

    def __init__(self, *, tasks: Mapping[str, Mapping[str, Any]], **common: Any) -> None:
        super().__init__(tasks=tasks, **common)
        self._micro: list[Batch] = []

    def setup(self, stage: str) -> None:
        # Not earlier: Lightning refuses accumulation with manual optimisation when it checks the module, since it would not know where a
        # window ends. Batches say so here, and the trainer goes on counting windows by its accumulate_grad_batches.
        if stage == "fit":
            self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        if units(self.backbone):
            raise ConfigError("schedule=dual shares no weights out over processes; use trainer.strategy=ddp, or schedule=alternate")
        total = int(self.trainer.estimated_stepping_batches)
        made = []
        for task in self.tasks:
            named = [(name, p) for name, p in self.backbone.named_parameters() if task.trains(name)]
            optimizer, schedule = build_optimizer(named, task.optim, total)
            made.append({"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}})
        return made

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clips here, behind the callbacks that look at gradients: the trainer does not clip in manual optimisation."""
        self.configure_gradient_clipping(optimizer)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        assert batch.window is not None, "training batches carry their accumulation window"
        if batch.window.index == 0:
            self._micro = []
        self._micro.append(batch)
        if batch.window.index + 1 < batch.window.size:
            return None
        window, self._micro = self._micro, []
        self._open_window(batch)
        looks = self._looks_now()
        optimizers: Any = self.optimizers()
        for index, (task, optimizer) in enumerate(zip(self.tasks, optimizers, strict=True)):
            self.task = task
            self._backward(window, looks=looks and index == 0)
            if task is not self.tasks[-1]:  # beside the trainer's count of steps, with the same hooks
                self.trainer.strategy.optimizer_step(optimizer.optimizer, _nothing)
            else:
                if self._logs_now():
                    self._log_window(batch)
                optimizer.step()
            optimizer.zero_grad()
        for schedule in self.lr_schedulers():  # type: ignore[union-attr]
            schedule.step()  # type: ignore[call-arg]
        return CoordLM.step_loss(self)

    def _backward(self, window: list[Batch], *, looks: bool) -> None:
        """The gradient of the task over the whole window; ranks exchange it once. Its terms are added to what is logged."""
        strategy = self.trainer.strategy
        for batch in window:
            waits = batch is not window[-1] and isinstance(strategy, ParallelStrategy)
            with strategy.block_backward_sync() if waits else nullcontext():  # type: ignore[attr-defined]
                loss = self._forward_loss(batch, looks=looks)
                self.manual_backward(loss.total)
            self._release_others()
            for name in sorted(self.task.terms):
                self._window[name] = self._window[name] + loss.terms[name]
                add_logs(self._window_logs, loss.outputs[name].logs)
            if self.task is self.tasks[0]:
                of_terms = {key for out in loss.outputs.values() for key in out.logs}
                add_logs(self._window_logs, {key: value for key, value in loss.logs.items() if key not in of_terms})  # of monitors

    def _learning_rates(self) -> dict[str, float]:
        optimizers: Any = self.optimizers()
        return {f"lr/{t.name}": o.param_groups[0]["lr"] for t, o in zip(self.tasks, optimizers, strict=True)}


def _nothing() -> None:
    """A closure for a step whose gradients are there already."""
