"""Coordinates as tokens: the LightningModule of detection with a language-model head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor
from torchmetrics import Metric

from coordvlm.contracts import Batch, Evaluation, Parser, Prediction
from coordvlm.losses.finite import refuse_non_finite
from coordvlm.losses.weighted_sum import WeightedSum
from coordvlm.models.backbone import NEEDS, Backbone
from coordvlm.models.decode import GreedyDecoder
from coordvlm.modules.optim import OptimSettings, build_optimizer


class CoordLM(lightning.LightningModule):
    """Trains the backbone with a recipe; validates by decoding; tests with every read-out.

    Args:
        losses: the recipe. decoder, parser: tokens -> records.
        val_metric, test_metrics: detection metrics with their truth set; test metrics by read-out, the first one is the reported one.
        optim: optimiser settings.
        readout: the reported read-out, also in validation.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        losses: WeightedSum,
        decoder: GreedyDecoder,
        parser: Parser,
        val_metric: Metric,
        test_metrics: Mapping[str, Metric],
        optim: OptimSettings,
        readout: str,
    ) -> None:
        super().__init__()
        losses.require(NEEDS, who="the token model")
        self.backbone, self.losses = backbone, losses
        self.decoder, self.parser, self.optim, self.readout = decoder, parser, optim, readout
        self.val_metric, self.test_metrics = val_metric, dict(test_metrics)
        self.evaluation: Evaluation | None = None
        self.readout_evaluations: dict[str, Evaluation] = {}
        self.predictions: list[Prediction] = []
        self._window: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._window_counts: Mapping[str, int] = {}
        self._window_logs: dict[str, tuple[Tensor, int]] = {}
        self._val_sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._val_counts: defaultdict[str, int] = defaultdict(int)
        self._val_logs: dict[str, tuple[Tensor, int]] = {}
        self.strict_loading = False  # a checkpoint's state_dict is empty: see on_save_checkpoint

    # --------------------------------------------------------------- training
    def configure_optimizers(self) -> Any:
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = build_optimizer(self.backbone.named_parameters(), self.optim, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.optim.clip_norm or float("inf"))
        if self._logs_now():
            self.log("grad_norm", norm)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert batch.window is not None, "training batches carry their accumulation window"
        if batch.window.index == 0:
            self._window.clear()
            self._window_logs = {}
            self._window_counts = self._over_ranks(batch.window.counts)
        output = self.backbone(batch, self.losses.needs)
        loss = self.losses(output, batch, self._window_counts, world_size=self.trainer.world_size, accumulate=batch.window.accumulate)
        refuse_non_finite(loss, batch.ids, step=self.global_step)
        for name, share in loss.terms.items():
            self._window[name] = self._window[name] + share
        _add(self._window_logs, loss.logs)
        if batch.window.index + 1 == batch.window.size and self._logs_now():
            terms = {name: self._sum_over_ranks(share) for name, share in self._window.items()}
            self.log_dict(self.losses.named(terms, "train_"), batch_size=len(batch))
            self.log("lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            self.log_dict(self._log_means(self._window_logs, "train_"), batch_size=len(batch))
        return loss.total  # type: ignore[no-any-return]

    def _log_means(self, logs: Mapping[str, tuple[Tensor, int]], prefix: str) -> dict[str, Tensor]:
        """What terms and monitors log, as means over everything that was added up, ranks included."""
        counts = self._over_ranks({name: n for name, (_, n) in logs.items()})
        return {prefix + name: self._sum_over_ranks(total) / max(counts[name], 1) for name, (total, _) in logs.items()}

    def _logs_now(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return self.trainer.global_step == 0 or (self.trainer.global_step + 1) % every == 0

    def _over_ranks(self, counts: Mapping[str, int]) -> Mapping[str, int]:
        """Window counts summed over all ranks: one all_reduce of a small vector per optimiser step."""
        if self.trainer.world_size == 1:
            return counts
        names = sorted(counts)
        total = self.trainer.strategy.reduce(torch.tensor([counts[n] for n in names], device=self.device), reduce_op="sum")
        return dict(zip(names, (int(x) for x in total.tolist()), strict=True))  # type: ignore[union-attr]

    def _sum_over_ranks(self, share: Tensor) -> Tensor:
        return share if self.trainer.world_size == 1 else self.trainer.strategy.reduce(share, reduce_op="sum")  # type: ignore[return-value]

    # ------------------------------------------------------------- validation
    def on_validation_epoch_start(self) -> None:
        self.val_metric.reset()
        self._val_sums.clear()
        self._val_logs = {}
        self._val_counts.clear()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Teacher-forced terms with the training's normaliser, and decoded predictions."""
        counts = self.losses.counts(batch)
        loss = self.losses(self.backbone(batch, self.losses.needs), batch, counts)
        for name, total in loss.sums.items():
            self._val_sums[name] = self._val_sums[name] + total
        for group, count in counts.items():
            self._val_counts[group] += count
        _add(self._val_logs, loss.logs)
        self.val_metric.update(self.predict_batch(batch)[self.readout])

    def on_validation_epoch_end(self) -> None:
        sums = {name: self._sum_over_ranks(total) for name, total in self._val_sums.items()}
        if sums:
            self.log_dict(self.losses.named(self.losses.means(sums, self._over_ranks(self._val_counts)), "val_"))
            self.log_dict(self._log_means(self._val_logs, "val_"))
        evaluation: Evaluation = self.val_metric.compute()
        wanted = ("AP", "AP50", "AP_score1", "F1_50", "parse_rate", "duplicate_rate", "px_median")
        self.log_dict({f"val/{k}": float(evaluation.metrics[k].value) for k in wanted if k in evaluation.metrics})

    # ------------------------------------------------------------------- test
    def predict_batch(self, batch: Batch, readouts: Sequence[str] | None = None) -> dict[str, list[Prediction]]:
        """Decode once, read as often as asked: read-out -> predictions in batch order."""
        decoded = self.decoder.decode(batch)
        return {
            name: [self.parser.parse(d, size=size, readout=name) for d, size in zip(decoded, batch.sizes, strict=True)]
            for name in (readouts or [self.readout])
        }

    def on_test_epoch_start(self) -> None:
        self.predictions = []
        for metric in self.test_metrics.values():
            metric.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        read = self.predict_batch(batch, list(self.test_metrics))
        for name, predictions in read.items():
            self.test_metrics[name].update(predictions)
        self.predictions += read[self.readout]

    def on_test_epoch_end(self) -> None:
        self.readout_evaluations = {name: metric.compute() for name, metric in self.test_metrics.items()}
        self.evaluation = self.readout_evaluations[self.readout]

    # ------------------------------------------------------------ checkpoints
    def trained_state(self) -> dict[str, Tensor]:
        """Canonical name -> value of everything that trains (and nothing that can be built again)."""
        return {name: p.detach() for name, p in self.backbone.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {}  # weights live in trained.safetensors beside it


def _add(to: dict[str, tuple[Tensor, int]], logs: Mapping[str, tuple[Tensor, int]]) -> None:
    for name, (total, count) in logs.items():
        before, number = to.get(name, (torch.zeros((), device=total.device), 0))
        to[name] = (before + total.detach(), number + count)
