"""What the trackers beside the CSV log share: when they start and end, what they are given, and that they cannot stop a training.

A tracker is a Lightning logger (it gets every scalar, under the names of log.csv) and a callback (it gets evaluations).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from PIL import Image

from coordvlm.callbacks.csv_log import read_rows
from coordvlm.callbacks.split_images import SplitImages
from coordvlm.contracts import Evaluation, GroundTruth, Prediction
from coordvlm.reports.gallery import caption_text, overlay_image, scenes
from coordvlm.utils.errors import ConfigError

_log = logging.getLogger(__name__)

Picture = tuple[int, Image.Image, str]  # image id, true (green) and predicted (red) boxes drawn on it, caption


class Tracker(Logger, Callback):
    """Starts with the training (an error then stops it, before the first step), ends after the test.

    What fails in between is warned of once: the training goes on, and log.csv has every number.

    Args:
        folder: the run folder; nothing is written outside.
        num_images: pictures of each validation and test: the same images every time, spread evenly over the ids.
        max_source_pixels: larger source images are not opened.
    """

    def __init__(self, *, folder: str, num_images: int, max_source_pixels: int) -> None:
        super().__init__()
        if num_images < 0:
            raise ConfigError(f"logger.{self.name}.num_images must be 0 or more, got {num_images}")
        self.folder, self.num_images, self.max_source_pixels = Path(folder), num_images, max_source_pixels
        self._active = self._warned = False

    # ------------------------------------------------- what a tracker implements
    @abstractmethod
    def begin(self, config: Mapping[str, Any]) -> None:
        """Open; ``config`` is the resolved configuration, nested. An error here ends the run."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    @abstractmethod
    def table(self, split: str, evaluation: Evaluation, step: int) -> None:
        """Every metric with its interval and meaning."""

    @abstractmethod
    def pictures(self, split: str, pictures: Sequence[Picture], step: int) -> None: ...

    @abstractmethod
    def summary(self, values: Mapping[str, float], step: int) -> None:
        """The numbers of metrics.json: ``test/AP``, ``test/AP_low``, ``test/AP_high`` ... All are finite."""

    @abstractmethod
    def end(self, *, ok: bool) -> None:
        """Write what is left and close."""

    # ------------------------------------------------------------------- logger
    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """``begin`` gets the whole configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {k: float(v) for k, v in metrics.items() if k != "epoch"}
        if values:
            self._safely(self.scalars, values, int(step or 0))

    # ----------------------------------------------------------------- callback
    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self._active or not trainer.is_global_zero:
            return
        saved = self.folder / "config.yaml"
        config = OmegaConf.to_container(OmegaConf.load(saved), resolve=True) if saved.is_file() else {}
        assert isinstance(config, dict)
        self.begin({str(k): v for k, v in config.items()})
        self._active = True
        for row in read_rows(self.folder / "log.csv"):  # of the run that is resumed: its curves go on here
            self._safely(self.scalars, {k: float(v) for k, v in row.items() if k != "step" and v}, int(row["step"]))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metric: Any = pl_module.val_metric
        evaluation = metric.compute()  # kept from a moment ago; on every rank, should it have to be gathered again
        self._evaluated(trainer, "val", evaluation, metric.truth, metric.predictions)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        module: Any = pl_module
        truth = module.test_metrics[module.readout].truth
        self._evaluated(trainer, "test", module.evaluation, truth, module.predictions)
        self._safely(self.summary, summary_values("test", module.evaluation), _step(trainer))

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        self.close(ok=False)

    def close(self, *, ok: bool) -> None:
        """End, once; later calls do nothing."""
        self._safely(lambda: self.end(ok=ok))
        self._active = False

    # ----------------------------------------------------------------- plumbing
    def _evaluated(
        self, trainer: lightning.Trainer, split: str, evaluation: Evaluation, truth: GroundTruth, predictions: Sequence[Prediction]
    ) -> None:
        if not trainer.is_global_zero:
            return
        step = _step(trainer)
        self._safely(self.table, split, evaluation, step)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.num_images and data is not None:
            images = SplitImages(data.source.split(split), self.max_source_pixels)
            self._safely(lambda: self.pictures(split, draw(evaluation, truth, predictions, images, self.num_images), step))

    def _safely(self, action: Callable[..., None], *args: Any) -> None:
        if not self._active:
            return
        try:
            action(*args)
        except Exception as error:
            if not self._warned:
                words = "%s: logging failed (%s: %s); the run goes on, and log.csv has every number"
                _log.warning(words, self.name, type(error).__name__, error)
            self._warned = True


def _step(trainer: lightning.Trainer) -> int:
    """The step that log.csv names beside the same evaluation: the last one taken."""
    return max(trainer.global_step - 1, 0)


def close_trackers(trainer: lightning.Trainer, *, ok: bool) -> None:
    """At the very end of a run."""
    for logger in trainer.loggers:
        if isinstance(logger, Tracker):
            logger.close(ok=ok)


def draw(
    evaluation: Evaluation, truth: GroundTruth, predictions: Sequence[Prediction], images: SplitImages, count: int
) -> list[Picture]:
    """At most ``count`` of the predicted images, spread evenly over their ids."""
    ids = sorted(int(p.sample_id) for p in predictions)
    wanted = {ids[int(i)] for i in np.linspace(0, len(ids) - 1, min(count, len(ids)))}
    chosen = [p for p in predictions if int(p.sample_id) in wanted]
    any_unmarked = bool(evaluation.counts.get("measured_to_any_unmarked", 0))
    shown = scenes(truth.subset(sorted(wanted)), chosen, evaluation.pairs, any_unmarked=any_unmarked)
    return [(s.image_id, overlay_image(s, images.load), caption_text(s)) for s in shown]


def summary_values(split: str, evaluation: Evaluation) -> dict[str, float]:
    """Every finite number of the metrics."""
    values: dict[str, float] = {}
    for name, found in evaluation.metrics.items():
        parts = {"": found.value, "_low": found.low, "_high": found.high}
        values |= {f"{split}/{name}{suffix}": float(v) for suffix, v in parts.items() if np.isfinite(v)}
    return values
