"""What explains a training: coordinate distributions, and how hard each term pulls, every n steps (SPEC 4.5)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coordvlm.coords.grid import Digits, Grid
from coordvlm.losses.weighted_sum import LossOutput, WeightedSum
from coordvlm.metrics.coord_probe import CoordProbe
from coordvlm.models.backbone import Backbone
from coordvlm.models.sharding import units
from coordvlm.utils import collectives
from coordvlm.utils.errors import ConfigError


class Diagnostics:
    """Probes of one run.

    Args:
        coords: bins to probe; with ``Digits`` there are none, and only gradients are looked at.
        every_n_steps: optimiser steps between two looks at training, rounded to whole logging intervals; 0: validation only.
    """

    def __init__(self, coords: Grid | Digits, *, every_n_steps: int) -> None:
        if isinstance(every_n_steps, bool) or not isinstance(every_n_steps, int) or every_n_steps < 0:
            raise ConfigError(f"callbacks.probe.every_n_steps must be a whole number, 0 for validation only, got {every_n_steps!r}")
        self.every = every_n_steps
        self.train = CoordProbe(coords) if isinstance(coords, Grid) else None
        self.val = CoordProbe(coords) if isinstance(coords, Grid) else None

    @property
    def needs(self) -> frozenset[str]:
        """Of the model, at a look and in validation."""
        return CoordProbe.needs if self.val is not None else frozenset()

    def due(self, step: int, log_every: int) -> bool:
        """Whether training is looked at in step ``step`` (counted from 0), one that is logged: the first, then every n."""
        if not self.every:
            return False
        interval = log_every * max(1, round(self.every / log_every))
        return step == 0 or (step + 1) % interval == 0


class GradientProbe:
    """Gradient of each weighted term on one parameter of the last language layer, summed over a window and all ranks.

    The parameter is the last trainable matrix of the language model, else (frozen) the new-token rows: a value to compare terms and
    recipes by, not the norm that is clipped.
    """

    def __init__(self, backbone: Backbone, losses: WeightedSum) -> None:
        self.losses, self.parameter = losses, probe_parameter(backbone)
        self._sums: dict[str, Tensor] = {}

    def add(self, loss: LossOutput, counts: Mapping[str, int]) -> None:
        """A micro-batch, before its backward; the graph stays."""
        for name, out in loss.outputs.items():
            share = out.sum * (self.losses.weights[name] / max(counts[self.losses.groups[name]], 1))
            gradient = torch.autograd.grad(share, self.parameter, retain_graph=True, allow_unused=True)[0] if share.requires_grad else None
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(self.parameter, dtype=torch.float32)
            if gradient is not None:
                self._sums[name] += gradient.float()

    def compute(self) -> dict[str, float]:
        """``grad_norm/<term>``, and ``grad_cos/<term>`` with the sum of all terms; then empty again. A term without a gradient
        here has no cosine. One transfer from the device."""
        names = sorted(self._sums)
        stacked = torch.stack([self._sums[n].flatten() for n in names])
        if collectives.active():
            torch.distributed.all_reduce(stacked)
        self._sums = {}
        total, norms = stacked.sum(0), stacked.norm(dim=1)
        whole = total.norm()
        values = torch.stack((norms, (stacked @ total) / (norms * whole))).tolist()
        found = {f"grad_norm/{n}": norm for n, norm in zip(names, values[0], strict=True)} | {"grad_norm/total": float(whole)}
        return found | {f"grad_cos/{n}": cosine for n, cosine in zip(names, values[1], strict=True) if math.isfinite(cosine)}


def probe_parameter(backbone: Backbone) -> nn.Parameter:
    """See ``GradientProbe``."""
    matrices = [p for p in backbone.hf.model.language_model.layers[-1].parameters() if p.requires_grad and p.ndim == 2]
    return matrices[-1] if matrices else backbone.rows.rows_in


def can_probe_gradients(backbone: Backbone) -> bool:
    """Not where weights are shared out over processes: a term's gradient would need a collective per layer."""
    return not units(backbone) and probe_parameter(backbone).requires_grad


def add_logs(to: dict[str, tuple[Tensor, int]], logs: Mapping[str, tuple[Tensor, int]]) -> None:
    """Add (sum, count) by name, in place."""
    for name, (total, count) in logs.items():
        before, number = to.get(name, (torch.zeros((), device=total.device), 0))
        to[name] = (before + total.detach(), number + count)
