"""Optimiser and schedule: parameter groups by what they are, one learning-rate factor over steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coordvlm.modules.joint import JointOptimizer
from coordvlm.utils.errors import ConfigError

SCHEDULES = ("constant", "linear", "cosine")
GROUPS = ("language", "vision", "merger", "adapter", "rows", "queries", "heads")


@dataclass(frozen=True)
class OptimSettings:
    """AdamW, optionally Muon for hidden matrices, and their schedule.

    Args:
        lr: learning rate of every group not named in ``group_lr``.
        group_lr: group -> learning rate; groups are ``language``, ``vision``, ``merger``, ``adapter`` (wherever it sits),
            ``rows`` (new-token rows), ``queries`` (of clips: numbers of size 1, which a rate for weights hardly moves) and ``heads``
            (regression).
        weight_decay: on matrices; never on norms, biases, embeddings' new rows or the ViT's position table.
        betas, eps: Adam's.
        schedule: ``cosine``, ``linear`` or ``constant`` after warm-up, down to ``final_lr`` x lr.
        warmup: steps (>= 1) or share of all steps (< 1).
        clip_norm: largest gradient norm; null: none.
        muon_lr: null: AdamW for everything. Else hidden matrices (not embeddings, new rows, position tables or convolutions) are
            trained by Muon with this learning rate, in AdamW's units (updates of equal RMS, arXiv:2502.16982); a group's own learning
            rate scales it alike.
        muon_momentum: of Muon.
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
    muon_lr: float | None
    muon_momentum: float

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"optim.schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if unknown := set(self.group_lr) - set(GROUPS):
            raise ConfigError(f"optim.group_lr knows {', '.join(GROUPS)}, got {', '.join(sorted(unknown))}")
        for name, value in {"lr": self.lr, **{f"group_lr.{k}": v for k, v in self.group_lr.items()}}.items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"optim.{name} must be positive, got {value!r}; freeze a part instead of giving it no learning rate")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"optim.clip_norm must be positive, or null for no clipping, got {self.clip_norm!r}")
        if self.muon_lr is not None and not (math.isfinite(self.muon_lr) and self.muon_lr > 0):
            raise ConfigError(f"optim.muon_lr must be positive or null, got {self.muon_lr!r}")
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
    if name.startswith("heads."):
        return "heads"
    if name.startswith("queries."):
        return "queries"
    if ".lora_" in name:
        return "adapter"
    if ".visual." in name:
        return "merger" if ".merger." in name or ".deepstack_merger_list." in name else "vision"
    return "language"


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """What Muon is for: weights between hidden states. Not embeddings, heads, new rows, position tables, convolutions
    or the factors of an adapter."""
    other = name.startswith("heads.") or any(part in name for part in ("embed", "lm_head", "rows.", ".lora_"))
    return parameter.ndim == 2 and not other


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], settings: OptimSettings) -> list[dict[str, Any]]:
    """Trainable parameters by (group, kind), named, in a fixed order. Kinds: ``muon``, decayed (no suffix), ``no_decay``."""
    groups: dict[tuple[str, str], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            group = group_of(name)
            if settings.muon_lr is not None and is_hidden_matrix(name, parameter):
                kind = "/muon"
            else:
                kind = "" if parameter.ndim >= 2 and group != "rows" and "pos_embed" not in name else "/no_decay"
            groups.setdefault((group, kind), []).append(parameter)
    out = []
    for (group, kind), parameters in sorted(groups.items()):
        scale = settings.group_lr.get(group, settings.lr) / settings.lr
        lr = settings.muon_lr if kind == "/muon" and settings.muon_lr is not None else settings.lr
        decay = 0.0 if kind == "/no_decay" else settings.weight_decay
        out.append({"params": parameters, "lr": lr * scale, "name": f"{group}{kind}", "weight_decay": decay})
    return out


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], settings: OptimSettings, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimiser and its per-step schedule."""
    groups = parameter_groups(named, settings)
    if not groups:
        raise ConfigError("nothing trains: every part is frozen")
    by_muon = [g for g in groups if g["name"].endswith("/muon")]
    by_adam = [g for g in groups if not g["name"].endswith("/muon")]
    parts: list[torch.optim.Optimizer] = []
    if by_adam:
        parts.append(torch.optim.AdamW(by_adam, betas=settings.betas, eps=settings.eps, fused=True))
    if by_muon:
        parts.append(torch.optim.Muon(by_muon, momentum=settings.muon_momentum, adjust_lr_fn="match_rms_adamw"))
    optimizer = parts[0] if len(parts) == 1 else JointOptimizer(*parts)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: settings.factor(step, total_steps))
