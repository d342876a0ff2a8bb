"""The LightningModule of detection, grounding and counting: a backbone, a recipe, and what asks it for answers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor
from torchmetrics import Metric

from coordvlm.contracts import Batch, Evaluation, ModelOutput, Prediction
from coordvlm.losses.weighted_sum import LossOutput, WeightedSum
from coordvlm.models.backbone import NEEDS, Backbone
from coordvlm.models.sharding import average_replicated, clip_gradients, gather_weights, release_weights, replicated, shard, units, whole
from coordvlm.modules.answerer import Answerer
from coordvlm.modules.counter import Counter
from coordvlm.modules.diagnostics import Diagnostics, GradientProbe, add_logs, can_probe_gradients
from coordvlm.modules.finite_guard import FiniteGuard
from coordvlm.modules.optim import OptimSettings, build_optimizer
from coordvlm.utils import collectives

#: Metrics of decoded validation images that are logged, where the task has them; callbacks.checkpoint.monitor names one.
_LOGGED = (
    "AP", "acc_50", "AP50", "AP_score1", "F1_50", "acc_75", "iou_mean_all", "detection_rate", "reject_f1", "parse_rate", "duplicate_rate",
    "px_median", "px384_median", "pck384_5", "n5_pck384_5", "on_unmarked", "done_acc", "done_acc_end", "done_acc_last", "done_acc_early",
    "count_mae", "loss_x", "loss_y",
)


class CoordLM(lightning.LightningModule):
    """Trains the backbone with a recipe; validates by decoding; tests with every read-out.

    Args:
        losses: the recipe. answerer: prompts -> predictions.
        val_metric, test_metrics: detection metrics with their truth set; test metrics by read-out, the first one is the reported one.
        optim: optimiser settings. diagnostics: what is looked at beside the loss; None: nothing.
        readout: the reported read-out, also in validation.
    """

    def __init__(
        self, *, backbone: Backbone, losses: WeightedSum, answerer: Answerer | Counter, val_metric: Metric,
        test_metrics: Mapping[str, Metric], optim: OptimSettings, readout: str, diagnostics: Diagnostics | None = None,
    ) -> None:
        super().__init__()
        losses.require(getattr(backbone, "needs", NEEDS), who="the token model")
        self.backbone, self.losses = backbone, losses
        self.answerer = answerer
        self.optim, self.readout = optim, readout
        self.val_metric, self.test_metrics = val_metric, dict(test_metrics)
        self.diagnostics = diagnostics
        self._gradients: GradientProbe | None = None
        self.evaluation: Evaluation | None = None
        self.readout_evaluations: dict[str, Evaluation] = {}
        self.predictions: list[Prediction] = []
        self.answers: list[Prediction] = []
        self.guard = FiniteGuard()
        self._window: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._window_counts: Mapping[str, int] = {}
        self._window_logs: dict[str, tuple[Tensor, int]] = {}
        self._val_sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._val_counts: defaultdict[str, int] = defaultdict(int)
        self._val_logs: dict[str, tuple[Tensor, int]] = {}
        self.skip_validation = False  # set by a callback that will end the run once all ranks have come to the end of validation
        self.strict_loading = False  # a checkpoint's state_dict is empty: see on_save_checkpoint

    # --------------------------------------------------------------- training
    def configure_model(self) -> None:
        """Share the weights out where the trainer asks for it (it has made a device mesh then)."""
        mesh = getattr(self, "_device_mesh", None)
        if mesh is not None:
            self.trainer.precision_plugin.convert_module(self)  # before: shards keep the type they were cut from
            shard(self.backbone, mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = build_optimizer(self.backbone.named_parameters(), self.optim, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def clip_norm(self) -> float | None:
        """Largest gradient norm of the optimiser that steps next."""
        return self.optim.clip_norm

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        norm = self._clip(optimizer)
        if self._logs_now():
            self.log("grad_norm", norm)

    def _clip(self, optimizer: Any) -> Tensor:
        """The norm before clipping, 0-dim, of a step whose losses are numbers."""
        self.guard.settle()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = self.clip_norm or float("inf")
        if units(self.backbone):
            average_replicated(replicated(self.backbone))
            return clip_gradients(parameters, limit)
        return torch.nn.utils.clip_grad_norm_(parameters, limit)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        assert batch.window is not None, "training batches carry their accumulation window"
        if batch.window.index == 0:
            self._open_window(batch)
        loss = self._forward_loss(batch, looks=self._looks_now())
        for name, share in loss.terms.items():
            self._window[name] = self._window[name] + share
        add_logs(self._window_logs, loss.logs)
        if batch.window.index + 1 == batch.window.size and self._logs_now():
            self._log_window(batch)
        return loss.total

    def _open_window(self, batch: Batch) -> None:
        assert batch.window is not None
        self._window.clear()
        self._window_logs = {}
        self._window_counts = collectives.sum_counts(batch.window.counts)

    def _forward_loss(self, batch: Batch, *, looks: bool) -> LossOutput:
        """Of one micro-batch, watched."""
        window, seen = batch.window, self.diagnostics if looks else None
        assert window is not None
        output = self.backbone(batch, self.losses.needs | (seen.needs if seen else frozenset()))
        loss: LossOutput = self.losses(output, batch, self._window_counts, world_size=self.trainer.world_size, accumulate=window.accumulate)
        self.guard.watch(loss, batch.ids, step=self.global_step)
        if seen:
            self._look(seen, output, batch, loss)
        return loss

    def _log_window(self, batch: Batch) -> None:
        """The step's terms and monitors over all ranks and micro-batches: one collective on the device, one beside it."""
        shares = {f"term/{name}": share for name, share in self._window.items()}
        total = collectives.sum_tensors(shares | {f"log/{name}": value for name, (value, _) in self._window_logs.items()})
        counts = collectives.sum_counts({name: n for name, (_, n) in self._window_logs.items()})
        self.log_dict(self.losses.named({name: total[f"term/{name}"] for name in self._window}, "train_"), batch_size=len(batch))
        self.log_dict(self._learning_rates())
        means = {f"train_{name}": total[f"log/{name}"] / (counts[name] or math.nan) for name in self._window_logs}  # of no item: no number
        self.log_dict(means, batch_size=len(batch))

    def _learning_rates(self) -> dict[str, float]:
        return {"lr": self.optimizers().param_groups[0]["lr"]}  # type: ignore[union-attr]

    def step_loss(self) -> Tensor:
        """This rank's share of the step's weighted loss, 0-dim; for callbacks, before the optimiser step."""
        return torch.stack([self.losses.weights[name] * share for name, share in self._window.items()]).sum()

    def _looks_now(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return self.diagnostics is not None and self.diagnostics.due(self.trainer.global_step, every)

    def _look(self, diagnostics: Diagnostics, output: ModelOutput, batch: Batch, loss: LossOutput) -> None:
        """Add a micro-batch of a step that is looked at; log when its window is complete."""
        assert batch.window is not None
        if batch.window.index == 0:
            self._gradients = GradientProbe(self.backbone, self.losses) if can_probe_gradients(self.backbone) else None
            if diagnostics.train is not None:
                diagnostics.train.reset()
        if diagnostics.train is not None:
            diagnostics.train.update(output, batch)
        if self._gradients is not None:
            self._gradients.add(loss, self._window_counts)
        if batch.window.index + 1 < batch.window.size:
            return
        found: dict[str, float] = {}
        if self._gradients is not None:
            found |= {f"train_{name}": value for name, value in self._gradients.compute().items()}
            self._gradients = None
        if diagnostics.train is not None:
            found |= _named(diagnostics.train.compute(), "train_")
        for logger in self.loggers:  # not self.log: Lightning would repeat the values at every later step
            logger.log_metrics(found, step=self.global_step)

    def _logs_now(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return self.trainer.global_step == 0 or (self.trainer.global_step + 1) % every == 0

    # ------------------------------------------------------------- validation
    def on_validation_epoch_start(self) -> None:
        self.val_metric.reset()
        if self.diagnostics is not None and self.diagnostics.val is not None:
            self.diagnostics.val.reset()
        self._val_sums.clear()
        self._val_logs = {}
        self._val_counts.clear()
        gather_weights(self.backbone)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Teacher-forced terms with the training's normaliser, and decoded predictions."""
        if self.skip_validation:
            return
        counts = self.losses.counts(batch)
        probe = None if self.diagnostics is None else self.diagnostics.val
        output = self.backbone(batch, self.losses.needs | (frozenset() if probe is None else probe.needs))
        loss = self.losses(output, batch, counts)
        if probe is not None:
            probe.update(output, batch)
        for name, total in loss.sums.items():
            self._val_sums[name] = self._val_sums[name] + total
        for group, count in counts.items():
            self._val_counts[group] += count
        add_logs(self._val_logs, loss.logs)
        self.val_metric.update(self.predict_batch(batch, once=True)[self.readout])

    def on_validation_epoch_end(self) -> None:
        self._log_validation()
        if self.diagnostics is not None and self.diagnostics.val is not None:
            self.log_dict(_named(self.diagnostics.val.compute(), "val_"))
        evaluation: Evaluation = self.val_metric.compute()
        self.log_dict({f"val/{k}": float(evaluation.metrics[k].value) for k in self.logged(evaluation)})

    def logged(self, evaluation: Evaluation) -> list[str]:
        """Metrics of decoded validation images that are logged."""
        return [name for name in _LOGGED if name in evaluation.metrics]

    def _log_validation(self) -> None:
        """Terms and monitors over all images, whichever rank saw them; a rank may have seen none."""
        mine = {f"sum/{name}": (float(total), 0) for name, total in self._val_sums.items()}
        mine |= {f"count/{group}": (0.0, count) for group, count in self._val_counts.items()}
        mine |= {f"log/{name}": (float(total), count) for name, (total, count) in self._val_logs.items()}
        total: defaultdict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        for part in collectives.gather(mine):
            for name, (value, count) in part.items():
                total[name] = (total[name][0] + value, total[name][1] + count)
        kinds: dict[str, dict[str, tuple[float, int]]] = {"sum": {}, "count": {}, "log": {}}
        for name, pair in total.items():
            kind, _, rest = name.partition("/")
            kinds[kind][rest] = pair
        if kinds["sum"]:
            sums = {name: torch.tensor(value, device=self.device) for name, (value, _) in kinds["sum"].items()}
            counts = {group: count for group, (_, count) in kinds["count"].items()}
            self.log_dict(self.losses.named(self.losses.means(sums, counts), "val_"))
            self.log_dict({f"val_{name}": value / (count or math.nan) for name, (value, count) in kinds["log"].items()})

    def on_validation_end(self) -> None:
        release_weights(self.backbone)

    # ------------------------------------------------------------------- test
    def predict_batch(
        self, batch: Batch, readouts: Sequence[str] | None = None, *, once: bool = False
    ) -> dict[str, list[Prediction]]:
        """Decode, read as often as asked: read-out -> predictions in batch order. ``once``: greedily, whatever the settings."""
        return self.answerer.ask(batch, readouts or [self.readout], once=once)

    def on_test_epoch_start(self) -> None:
        self.predictions = []
        gather_weights(self.backbone)
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
        everything = [p for part in collectives.gather(self.predictions) for p in part]
        self.predictions = sorted(everything, key=lambda p: p.sample_id)  # type: ignore[arg-type, return-value]
        release_weights(self.backbone)

    # ---------------------------------------------------------------- predict
    def on_predict_epoch_start(self) -> None:
        self.answers = []
        gather_weights(self.backbone)

    def predict_step(self, batch: Batch, batch_idx: int) -> int:
        """Answers by the reported read-out, as in the test, into ``answers``; the test's results stay. Returns how many."""
        self.answers += (found := self.predict_batch(batch)[self.readout])
        return len(found)  # Lightning moves what is returned to the CPU, which frozen dataclasses refuse

    def on_predict_epoch_end(self) -> None:
        everything = [p for part in collectives.gather(self.answers) for p in part]
        self.answers = sorted(everything, key=lambda p: p.sample_id)  # type: ignore[arg-type, return-value]
        release_weights(self.backbone)

    # ------------------------------------------------------------ checkpoints
    def trained_state(self) -> dict[str, Tensor]:
        """Canonical name -> value of everything that trains (and nothing that can be built again). All ranks must call this."""
        if units(self.backbone):
            release_weights(self.backbone)
            return {name: whole(p.detach()) for name, p in self.backbone.named_parameters() if p.requires_grad}
        return {name: p.detach() for name, p in self.backbone.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {}  # weights live in trained.safetensors beside it


def _named(found: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Undefined values (no slot of that kind was seen) are left out."""
    return {f"{prefix}coord_probe/{name}": value for name, value in found.items() if not math.isnan(value)}
