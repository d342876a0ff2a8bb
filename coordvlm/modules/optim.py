"""Optimiser and schedule: parameter groups by what they are, one learning-rate factor over steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from coordvlm.utils.errors import ConfigError

SCHEDULES = ("constant", "linear", "cosine")
GROUPS = ("language", "vision", "merger", "rows")


@dataclass(frozen=True)
class OptimSettings:
    """AdamW and its schedule.

    Args:
        lr: learning rate of every group not named in ``group_lr``.
        group_lr: group -> learning rate; groups are ``language``, ``vision``, ``merger`` and ``rows`` (new-token rows).
        weight_decay: on matrices; never on norms, biases, embeddings' new rows or the ViT's position table.
        betas, eps: Adam's.
        schedule: ``cosine``, ``linear`` or ``constant`` after warm-up, down to ``final_lr`` x lr.
        warmup: steps (>= 1) or share of all steps (< 1).
        clip_norm: largest gradient norm; null: none.
    """

    lr: float
    group_lr: Mapping[str, float]
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    schedule: str
    warmup: float
    final_lr: float
    clip_norm: float | None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"optim.schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if unknown := set(self.group_lr) - set(GROUPS):
            raise ConfigError(f"optim.group_lr knows {', '.join(GROUPS)}, got {', '.join(sorted(unknown))}")
        for name, value in {"lr": self.lr, **{f"group_lr.{k}": v for k, v in self.group_lr.items()}}.items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"optim.{name} must be positive, got {value!r}; freeze a part instead of giving it no learning rate")
        if self.warmup < 0 or not 0 <= self.final_lr <= 1:
            raise ConfigError(f"optim needs warmup >= 0 and final_lr in [0, 1], got {self.warmup} and {self.final_lr}")

    def factor(self, step: int, total: int) -> float:
        """Learning-rate factor at a step in [0, total)."""
        warmup = int(self.warmup if self.warmup >= 1 else self.warmup * total)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[self.schedule]
        return shape if self.schedule == "constant" else self.final_lr + (1 - self.final_lr) * shape


def group_of(name: str) -> str:
    """Which group a parameter of a ``Backbone`` belongs to, by its canonical name."""
    if name.startswith("rows."):
        return "rows"
    if ".visual." in name:
        return "merger" if ".merger." in name or ".deepstack_merger_list." in name else "vision"
    return "language"


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], settings: OptimSettings) -> list[dict[str, object]]:
    """Trainable parameters by (group, decayed or not), named, in a fixed order."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            group = group_of(name)
            decay = parameter.ndim >= 2 and group != "rows" and "pos_embed" not in name
            groups.setdefault((group, decay), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.group_lr.get(group, settings.lr),
            "name": f"{group}{'' if decay else '/no_decay'}",
            "weight_decay": settings.weight_decay if decay else 0.0,
        }
        for (group, decay), parameters in sorted(groups.items())
    ]


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], settings: OptimSettings, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW (fused where it exists) and its per-step schedule."""
    groups = parameter_groups(named, settings)
    if not groups:
        raise ConfigError("nothing trains: every part is frozen")
    optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: settings.factor(step, total_steps))
