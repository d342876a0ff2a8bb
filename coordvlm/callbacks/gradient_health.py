"""Gradient norms per head and part of the model before clipping: logged, watched, and summed up for the record of the run.

A *group* is what a parameter belongs to: a head by its name (``x``, ``y``, ``done``, ``spatial`` ...), the new-token ``rows``, the
``adapter``, or the ``backbone`` (all else that trains). Where tasks take turns, groups and losses are kept per task: ``regression/x``.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from coordvlm.models.sharding import units
from coordvlm.utils import collectives
from coordvlm.utils.errors import ConfigError

#: Losses that a running median needs before a loss can be called a spike.
_ENOUGH = 10
#: Steps of spikes that are kept by number; all are counted.
_KEPT = 20


class GradientHealth(Callback):
    """Every optimiser step is measured on the device; every n steps the measurements come over in one transfer.

    Args:
        every_n_steps: optimiser steps between two transfers, each of which logs the latest norms as ``grad_health/<group>``.
        healthy: (low, high), the range of a norm that raises no warning.
        warn_every_n_steps: at most one warning in so many steps.
        spike_factor: a loss above so many times the median of the ``spike_window`` losses before it is a spike.
    Raises:
        ConfigError: settings out of range; weights that are shared out over processes, where a norm per head would need a collective.
    """

    def __init__(
        self, *, every_n_steps: int, healthy: Sequence[float], warn_every_n_steps: int, spike_factor: float, spike_window: int
    ) -> None:
        for name, value, least in (
            ("every_n_steps", every_n_steps, 1), ("warn_every_n_steps", warn_every_n_steps, 1), ("spike_window", spike_window, _ENOUGH),
        ):  # fmt: skip
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"callbacks.gradient_health.{name} must be a whole number of at least {least}, got {value!r}")
        if len(healthy) != 2 or not 0 <= healthy[0] < healthy[1]:
            raise ConfigError(f"callbacks.gradient_health.healthy must be [low, high] with 0 <= low < high, got {list(healthy)}")
        if not (math.isfinite(spike_factor) and spike_factor > 1):
            raise ConfigError(f"callbacks.gradient_health.spike_factor must be above 1, got {spike_factor!r}")
        self.every, self.warn_every = every_n_steps, warn_every_n_steps
        self.low, self.high = float(healthy[0]), float(healthy[1])
        self.spike_factor, self.spike_window = float(spike_factor), spike_window
        self.norms: defaultdict[str, list[float]] = defaultdict(list)
        self.losses: defaultdict[str, list[float]] = defaultdict(list)
        self.clipped: defaultdict[str, int] = defaultdict(int)
        self.spikes: defaultdict[str, list[int]] = defaultdict(list)
        self._pending: list[tuple[str, int, list[str], float, Tensor]] = []
        self._group_of: dict[int, str] = {}
        self._warned_at: int | None = None

    # ---------------------------------------------------------------- measure
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        backbone: Any = pl_module.backbone
        if units(backbone):
            raise ConfigError("callbacks.gradient_health measures no weights that are shared out over processes (trainer.strategy=fsdp)")
        self._group_of = {id(p): group_of(name) for name, p in backbone.named_parameters() if p.requires_grad}

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any) -> None:
        """Called before clipping, with the gradients of the whole window over all ranks."""
        gradients: defaultdict[str, list[Tensor]] = defaultdict(list)
        for parameter in (p for g in optimizer.param_groups for p in g["params"]):
            if parameter.grad is not None:
                gradients[self._group_of[id(parameter)]].append(parameter.grad.detach())
        module: Any = pl_module
        task, names = getattr(module, "task_name", ""), sorted(gradients)
        norms = [torch.nn.utils.get_total_norm(gradients[name]).float() for name in names]
        limit = module.clip_norm or math.inf
        self._pending.append((task, trainer.global_step, names, limit, torch.stack([module.step_loss().float(), *norms])))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._pending and ((step := self._pending[-1][1]) + 1) % self.every == 0:
            latest = self._collect()
            for logger in trainer.loggers:  # not self.log: Lightning would repeat the values at every later step
                # under the step's own number, as its losses: a resumed log is cut behind the last step of the checkpoint
                logger.log_metrics({f"grad_health/{name}": value for name, value in latest.items()}, step=step)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._collect()

    # ----------------------------------------------------------------- digest
    def _collect(self) -> dict[str, float]:
        """Bring what was measured to the host: one transfer, and one collective where there are ranks. All ranks call this together.

        Returns:
            The latest norm of each group.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return {}
        losses = collectives.sum_tensors({f"{i:06d}": values[0] for i, (*_, values) in enumerate(pending)})
        flat = iter(torch.cat([torch.stack([losses[name] for name in sorted(losses)]), *(p[-1][1:] for p in pending)]).tolist())
        totals = [next(flat) for _ in pending]
        latest: dict[str, float] = {}
        outside: dict[str, int] = defaultdict(int)
        for (task, step, names, limit, _), loss in zip(pending, totals, strict=True):
            found = {f"{task}/{name}" if task else name: next(flat) for name in names}
            self._judge_loss(task, step, loss)
            self.clipped[task] += math.hypot(*found.values()) > limit
            for name, norm in found.items():
                self.norms[name].append(norm)
                outside[name] += not self.low <= norm <= self.high
            latest |= found
        self._warn(pending[-1][1], latest, {name: number for name, number in outside.items() if number})
        return latest

    def _judge_loss(self, task: str, step: int, loss: float) -> None:
        before = self.losses[task][-self.spike_window :]
        if len(before) >= _ENOUGH and not loss <= self.spike_factor * statistics.median(before):
            self.spikes[task].append(step)
        self.losses[task].append(loss)

    def _warn(self, step: int, latest: dict[str, float], outside: dict[str, int]) -> None:
        if not outside or (self._warned_at is not None and step - self._warned_at < self.warn_every) or collectives.rank():
            return
        self._warned_at = step
        words = ", ".join(f"{name} (now {latest[name]:.3g}) in {number}" for name, number in sorted(outside.items()))
        logging.getLogger(__name__).warning(
            f"step {step}: gradient norms before clipping outside {self.low:g} .. {self.high:g} since the last look, by steps: {words}"
        )

    def findings(self) -> dict[str, Any]:
        """For the record of the run: per group the range of its norms and the share outside ``healthy``; per task clips and spikes."""
        if not collectives.active():  # a rank may be alone here, after a failure
            self._collect()
        groups = {}
        for name, norms in sorted(self.norms.items()):
            outside = sum(not self.low <= norm <= self.high for norm in norms)
            numbers = [norm for norm in norms if math.isfinite(norm)]
            lowest, middle, highest = (min(numbers), statistics.median(numbers), max(numbers)) if numbers else (None, None, None)
            groups[name] = {
                "steps": len(norms), "min": lowest, "median": middle, "max": highest, "share_outside": outside / len(norms),
            }  # fmt: skip
        tasks = {
            task or "all": {"steps": len(losses), "clipped_steps": self.clipped[task], "loss_spikes": len(self.spikes[task]),
                            "spike_steps": self.spikes[task][:_KEPT]}
            for task, losses in sorted(self.losses.items())
        }  # fmt: skip
        settings = {"healthy": [self.low, self.high], "spike_factor": self.spike_factor, "spike_window": self.spike_window}
        return {"gradient_health": {**settings, "groups": groups, "tasks": tasks}}

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """All ranks call this together, as they save together."""
        self._collect()
        return {
            "norms": {name: torch.tensor(x) for name, x in self.norms.items()},
            "losses": {name: torch.tensor(x) for name, x in self.losses.items()},
            "clipped": dict(self.clipped),
            "spikes": {name: list(x) for name, x in self.spikes.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, mine in (("norms", self.norms), ("losses", self.losses)):
            mine.update({key: x.tolist() for key, x in state_dict[name].items()})
        self.clipped.update(state_dict["clipped"])
        self.spikes.update({key: list(x) for key, x in state_dict["spikes"].items()})


def group_of(name: str) -> str:
    """Of a parameter of a ``Backbone``, by its canonical name."""
    part, _, rest = name.partition(".")
    if part == "heads":
        return rest.partition(".")[0]
    if part == "rows":
        return "rows"
    return "adapter" if ".lora_" in name else "backbone"
