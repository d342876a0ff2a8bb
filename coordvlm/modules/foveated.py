"""The LightningModule of clips: passes over the frames, each with the recipe's loss, and answers by every way of looking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coordvlm.contracts import ClipBatch, Evaluation, ModelOutput
from coordvlm.losses.weighted_sum import LossOutput
from coordvlm.models.foveated.model import ARMS
from coordvlm.modules.coord_lm import CoordLM
from coordvlm.modules.diagnostics import add_logs
from coordvlm.utils.errors import ConfigError

#: Which of the fine iterations are trained: the last, all alike, or later ones more (1, 2 ... n, divided by their sum).
ITERATION_LOSSES = ("last", "all", "progressive")


def iteration_weights(kind: str, number: int) -> list[float]:
    """float[number], adding up to 1."""
    if kind not in ITERATION_LOSSES:
        raise ConfigError(f"module.iteration_loss must be one of {', '.join(ITERATION_LOSSES)}, got {kind!r}")
    raw = {"last": [0.0] * (number - 1) + [1.0], "all": [1.0] * number, "progressive": [float(i) for i in range(1, number + 1)]}[kind]
    return [w / sum(raw) for w in raw]


def arm_weights(coarse: float, fine: float) -> dict[str, float]:
    """Arms that are trained -> their weights.

    Raises:
        ConfigError: a weight that is no finite number of at least 0, or nothing is trained.
    """
    weights = {"coarse": coarse, "fine": fine}
    for name, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"module.{name}_weight must be a number of at least 0, got {value!r}")
    trained = {name: float(weights[name]) for name in ARMS if weights[name] > 0}
    if not trained:
        raise ConfigError("module.coarse_weight and module.fine_weight are both 0, so nothing would be trained")
    return trained


class FoveatedLM(CoordLM):
    """See the module docstring; everything else is as in ``CoordLM``.

    Terms are logged under their names for the arm that is reported (``fine``, if it is trained), and as ``<arm>/<term>`` for all.

    Args:
        coarse_weight, fine_weight: of the two passes' losses. With one at 0 that pass is not trained, and the other's loss cannot be
            compared with it. A term may train fewer passes (``LossTerm.arms``).
        iteration_loss: of ``ITERATION_LOSSES``.
        mix: task -> {``share``: how often, ``terms``: of the recipe}; every batch trains one of them, drawn as a whole. Null: all terms,
            always.
        seed: of the draws.
    """

    def __init__(
        self, *, coarse_weight: float, fine_weight: float, iteration_loss: str, mix: Mapping[str, Mapping[str, Any]] | None, seed: int,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.arm_weights = arm_weights(coarse_weight, fine_weight)
        model: Any = self.backbone  # a Foveated
        self.iteration_weights = iteration_weights(iteration_loss, model.iterations)
        self.mix = TaskMix(mix, self.losses.weights, seed=seed)
        for name in self.losses.weights:
            if not any(name in self.trained_terms(arm, None) for arm in self.arm_weights):
                raise ConfigError(
                    f"loss term {name!r} trains {', '.join(self.losses.terms[name].arms)} alone, and of the passes only "  # type: ignore
                    f"{', '.join(self.arm_weights)} train: see module.coarse_weight and module.fine_weight"
                )

    @property
    def main_arm(self) -> str:
        """The arm that is reported."""
        return "fine" if "fine" in self.arm_weights else "coarse"

    def logged(self, evaluation: Evaluation) -> list[str]:
        """All: every arm and control, at every validation."""
        return list(evaluation.metrics)

    # --------------------------------------------------------------- training
    def _forward_loss(self, batch: ClipBatch, *, looks: bool) -> LossOutput:  # type: ignore[override]
        window = batch.window
        assert window is not None
        terms = self.mix.draw(self.global_step)
        outputs = self.backbone(batch, self.losses.needs, tuple(self.arm_weights))
        loss = self._all_arms(
            outputs, batch, self._window_counts, terms, world_size=self.trainer.world_size, accumulate=window.accumulate
        )
        self.guard.watch(loss, batch.ids, step=self.global_step)
        return loss

    def _all_arms(
        self, outputs: Mapping[str, Sequence[ModelOutput]], batch: ClipBatch, counts: Mapping[str, int], terms: frozenset[str] | None,
        **scale: int,
    ) -> LossOutput:
        """One loss of all trained passes. terms: those of this batch's task; None: all."""
        total: Tensor | None = None
        found: dict[str, LossOutput] = {}
        for arm, passes in outputs.items():
            weights = self.iteration_weights if arm == "fine" else [1.0]
            for weight, output in zip(weights, passes, strict=True):
                found[arm] = self.losses(output, batch, counts, **scale)
                if weight == 0 and len(passes) > 1:
                    continue
                part = self.arm_weights[arm] * weight * self._share(found[arm], self.trained_terms(arm, terms), **scale)
                total = part if total is None else total + part
        assert total is not None
        main = found[self.main_arm]
        logs = dict(main.logs)
        for arm, loss in found.items():
            logs |= {f"{arm}/{name}": (share.detach(), 1) for name, share in loss.terms.items()}
        named = {f"{arm}/{name}": out for arm, loss in found.items() for name, out in loss.outputs.items()}
        return LossOutput(total=total, terms=main.terms, sums=main.sums, logs=logs, outputs=named)

    def trained_terms(self, arm: str, terms: frozenset[str] | None) -> frozenset[str]:
        """Those of a task's terms (None: all) that train this arm."""
        named = self.losses.weights if terms is None else terms
        return frozenset(n for n in named if (arms := self.losses.terms[n].arms) is None or arm in arms)  # type: ignore[operator]

    def _share(self, loss: LossOutput, terms: frozenset[str], *, world_size: int = 1, accumulate: int = 1) -> Tensor:
        """The weighted loss of some terms, with graph. Terms left out weigh 0 but stay in the graph: every rank's parameters do."""
        if terms == set(self.losses.weights):
            return loss.total
        counts, groups = self._window_counts, self.losses.groups
        parts = [
            loss.outputs[name].sum * ((weight if name in terms else 0.0) * world_size * accumulate / max(counts[groups[name]], 1))
            for name, weight in self.losses.weights.items()
        ]
        return torch.stack(parts).sum()

    # ------------------------------------------------------------- validation
    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Teacher-forced terms of every trained arm, and the answers of all ways of looking."""
        if self.skip_validation:
            return
        counts = self.losses.counts(batch)
        outputs = self.backbone(batch, self.losses.needs, tuple(self.arm_weights))
        for arm, passes in outputs.items():
            loss = self.losses(passes[-1], batch, counts)
            add_logs(self._val_logs, {f"{arm}/{n}": (total, counts[self.losses.groups[n]]) for n, total in loss.sums.items()})
            if arm == self.main_arm:
                for name, value in loss.sums.items():
                    self._val_sums[name] = self._val_sums[name] + value
                add_logs(self._val_logs, loss.logs)
        for group, count in counts.items():
            self._val_counts[group] += count
        self.val_metric.update(self.predict_batch(batch, once=True)[self.readout])


class TaskMix:
    """Which terms a batch trains: a draw per *step*, so every sample of a batch, every micro-batch of a step and every rank has the same.

    Args:
        given: task -> {``share``, ``terms``}; None: one task with all terms. known: terms of the recipe.
    Raises:
        ConfigError: a term that the recipe has not, one that no task trains, or a share that is no number above 0.
    """

    def __init__(self, given: Mapping[str, Mapping[str, Any]] | None, known: Mapping[str, float], *, seed: int) -> None:
        self.seed, self.tasks, self.shares = seed, [], []
        for name, node in (given or {}).items():
            if set(node) != {"share", "terms"}:
                raise ConfigError(f"module.mix.{name} needs share and terms, got {sorted(node)}")
            share, terms = node["share"], frozenset(node["terms"])
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not (math.isfinite(share) and share > 0):
                raise ConfigError(f"module.mix.{name}.share must be a number above 0, got {share!r}")
            if unknown := sorted(terms - set(known)):
                raise ConfigError(f"module.mix.{name}.terms names {unknown[0]!r}, which the recipe has not; it has {', '.join(known)}")
            if not terms:
                raise ConfigError(f"module.mix.{name}.terms is empty, so such a batch would train nothing")
            self.tasks.append((str(name), terms))
            self.shares.append(float(share))
        if self.tasks and (idle := sorted(set(known) - frozenset().union(*(t for _, t in self.tasks)))):
            raise ConfigError(f"module.mix has no task that trains {idle[0]!r}")

    def draw(self, step: int) -> frozenset[str] | None:
        """The terms of an optimiser step; None: all."""
        if not self.tasks:
            return None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        at = int(torch.multinomial(torch.tensor(self.shares), 1, generator=generator))
        return self.tasks[at][1]
