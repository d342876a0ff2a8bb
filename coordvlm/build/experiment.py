"""A run without its trainer: model, data, recipe, decoding and metrics wired together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from coordvlm.build.counting import (
    FindSample,
    build_counter,
    count_settings,
    point_readouts,
    require_counting,
    require_questions,
    teaches_done,
)
from coordvlm.build.decoding import build_answerer, decode_settings
from coordvlm.build.model import Model, build_coords, build_model, task_of
from coordvlm.build.video import build_clip_model, build_looker, clip_module, clip_readouts, clip_settings, require_clips
from coordvlm.callbacks.batch_inspector import inspect_batch
from coordvlm.callbacks.clip_inspector import inspect_clips
from coordvlm.callbacks.question_inspector import inspect_questions
from coordvlm.contracts import Batch, ClipBatch, ClipTruth, GroundTruth, PhraseTruth, PointTruth, Sample
from coordvlm.data.curriculum import Curriculum
from coordvlm.data.datamodule import CoordDataModule
from coordvlm.data.filtered import limit_objects
from coordvlm.data.images import target_size
from coordvlm.data.loader import first_samples
from coordvlm.data.overfit import FirstBatch
from coordvlm.data.source import DataSource, Split
from coordvlm.losses.weighted_sum import WeightedSum
from coordvlm.metrics.detection import DetectionMetric
from coordvlm.metrics.protocol import protocol_hash
from coordvlm.models.heads import HEAD_OUTPUTS
from coordvlm.modules.answerer import HEAD
from coordvlm.modules.coord_lm import CoordLM
from coordvlm.modules.counter import Counter
from coordvlm.modules.diagnostics import Diagnostics
from coordvlm.modules.optim import OptimSettings
from coordvlm.reports.inspect_page import BatchPage, Check
from coordvlm.sequence.parse import READOUTS
from coordvlm.sequence.prompt import PromptBuilder
from coordvlm.utils.errors import ConfigError

#: Training answers that the token budget of decoding is measured on.
_BUDGET_SAMPLES = 512
#: Settings of decoding that decide nothing but time, memory and what is looked into besides.
_OF_SPEED = ("max_batch", "diagnosed", "pictures")
_BUDGET_RULE = "1.5 x the longest training answer + 8"


@dataclass
class Experiment:
    """A run, wired.

    Args:
        split: the split that is scored, ``test`` or ``val``; ``val`` too where it stands in for a missing ``test``.
        truth: of the images that are scored, ``val_truth``: of those that checkpoints are chosen on.
    """

    cfg: DictConfig
    model: Model
    source: DataSource
    data: CoordDataModule
    losses: WeightedSum
    module: CoordLM
    decode: dict[str, Any]
    split: str
    truth: GroundTruth
    val_truth: GroundTruth

    @property
    def title(self) -> str:
        """Of a table of results."""
        things = {PhraseTruth: "phrases", PointTruth: "counts", ClipTruth: "clips"}.get(type(self.truth), "images")
        return f"{len(self.truth.image_ids)} {self.split} {things}"

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The evaluation protocol as plain values, with its hash under ``hash``."""
        values = {
            "data": self.truth.digest(),
            "split": self.split,
            "image_limits": {"max_source_pixels": self.cfg.model.max_source_pixels},
            "backend": self.cfg.metrics.get("backend", "none"),  # COCO's numbers are detection's
            **{key: value for key, value in self.decode.items() if key not in _OF_SPEED},
            # the rule, not its outcome, which depends on how long a format is
            "max_new_tokens": _BUDGET_RULE if self.cfg.decode.get("max_new_tokens", 0) is None else self.decode["max_new_tokens"],
        }
        return {**values, "hash": protocol_hash(values)}


    def prompt_of(self, sample: Sample) -> str:
        """The user's text, as a sample of the scored split is first asked."""
        prompt = self.model.encoder.prompt
        if isinstance(prompt, PromptBuilder):
            return prompt.prompt_text(sample.class_list, sample.phrase)
        return prompt.prompt_text(str(sample.category))

    def inspect(
        self, path: Path, batch: Batch, samples: Mapping[int | str, Sample], load_image: Any
    ) -> tuple[list[BatchPage], list[Check]]:
        """Check the first training batch against its samples and write its page.

        Raises:
            ContractError: an assertion failed; the page shows which.
        """
        answerer, model = self.module.answerer, self.model
        if isinstance(batch, ClipBatch):
            return inspect_clips(path, batch, samples, model.tokenizer, model.contract)
        if isinstance(answerer, Counter):
            return inspect_questions(path, batch, samples, model.tokenizer, model.contract)
        assert model.target is not None
        return inspect_batch(path, batch, samples, model.target, model.vocab, model.contract, load_image, parser=answerer.parser)


def build_experiment(cfg: DictConfig, *, split: str = "test", budget: int | None = None) -> Experiment:
    """Everything but the trainer.

    Args:
        split: what the module's test metrics are for: ``test`` or ``val`` (all of it).
        budget: new tokens per image where ``decode.max_new_tokens`` is null; None measures them on the training answers.
    """
    task = task_of(cfg)
    losses: WeightedSum = instantiate(cfg.loss)
    decode, readouts = _asking(cfg, losses, task)
    if task in ("detect", "ground") and not build_coords(cfg).num_bins:  # what is written is what is read
        losses, readouts = losses.without_slots(format=cfg.sequence.format), (cfg.decode.readout,)
    if task == "ground" and losses.needs & HEAD_OUTPUTS.keys():
        readouts = (*readouts, HEAD)
    source: DataSource = instantiate(cfg.data.source)  # a wrong path is found before gigabytes of weights are fetched or read
    model = build_clip_model(cfg) if task == "video" else build_model(cfg)
    if task in ("detect", "ground"):
        source = limit_objects(source, max_objects=cfg.sequence.max_objects, on_too_many=cfg.sequence.on_too_many)
    plain = source  # to measure answers, no image needs to be opened
    if (augment := OmegaConf.select(cfg, "augment")) is not None:  # runs from before there were transforms have no such key
        source = instantiate(augment).wrap(source)
    if cfg.overfit:
        source = plain = FirstBatch(source, first_samples(source, batch_size=cfg.data.batch_size, seed=cfg.seed))
    accumulate = cfg.trainer.accumulate_grad_batches
    data = CoordDataModule(
        source=source,
        encoder=model.encoder,
        batch_size=cfg.data.batch_size,
        eval_batch_size=cfg.data.eval_batch_size,
        num_workers=cfg.data.num_workers,
        seed=cfg.seed,
        count_fn=losses.counts,
        accumulate=accumulate,
        val_images=cfg.data.val_images,
        on_error=cfg.data.on_error,
        curriculum=Curriculum.parse(OmegaConf.select(cfg, "data.curriculum")),
        eval_answers=task == "video",  # how likely the true answer is says more than what is written
    )
    if decode["max_new_tokens"] is None:
        decode["max_new_tokens"] = budget or token_budget(model, plain)
    settings: OptimSettings = instantiate(cfg.optim)
    schedule = OmegaConf.select(cfg, "schedule")  # runs from before there were schedules have none
    kind = clip_module(cfg) if task == "video" else CoordLM if schedule is None else instantiate(schedule)
    module: CoordLM = kind(
        backbone=model.backbone,
        losses=losses,
        answerer=_answerer(cfg, model, decode, plain.split(split)),
        val_metric=_metric(cfg, num_replicates=0),
        test_metrics={
            name: _metric(cfg) if name == decode["readout"] else _metric(cfg, num_replicates=0)
            for name in sorted(readouts, key=lambda n: n != decode["readout"])
        },
        optim=settings,
        readout=decode["readout"],
        diagnostics=None if task in ("count", "video") else Diagnostics(model.grid, every_n_steps=cfg.callbacks.probe.every_n_steps),
    )
    batch = cfg.data.eval_batch_size
    val_ids = first_batches(data.val_ids(), cfg.trainer.limit_val_batches, batch)
    ids = first_batches(np.sort(source.split(split).ids), cfg.trainer.limit_test_batches, batch)
    if not len(ids):
        raise ConfigError(f"trainer.limit_test_batches={cfg.trainer.limit_test_batches} leaves no image to evaluate")
    truth, val_truth = source.truth(split).subset(ids.tolist()), source.truth("val").subset(val_ids.tolist())
    _require_task(task, truth)
    module.val_metric.set_truth(val_truth)  # type: ignore[operator]
    for metric in module.test_metrics.values():
        metric.set_truth(truth)  # type: ignore[operator]
    return Experiment(cfg, model, source, data, losses, module, decode, source.split(split).name, truth, val_truth)


def _asking(cfg: DictConfig, losses: WeightedSum, task: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """How the model is asked, and every read-out of its answers; refuses a recipe of another task."""
    if task == "video":
        require_clips(losses)
        return clip_settings(cfg, losses), clip_readouts(losses.needs)
    require_counting(losses, task=task)
    require_questions(cfg, losses)
    if task == "count":
        return count_settings(cfg, losses), point_readouts(losses.needs)
    return decode_settings(cfg), READOUTS


def _answerer(cfg: DictConfig, model: Model, decode: dict[str, Any], scored: Split) -> Any:
    """What turns prompts into predictions. scored: the split that is counted; other tasks need only its prompts."""
    if task_of(cfg) == "video":
        return build_looker(cfg, model, decode)
    if task_of(cfg) == "count":
        return build_counter(model, decode, find=FindSample(scored))
    return build_answerer(cfg, model, decode)


def _require_task(task: str, truth: GroundTruth) -> None:
    kinds = {PhraseTruth: "ground", PointTruth: "count", ClipTruth: "video"}
    found = next((name for kind, name in kinds.items() if isinstance(truth, kind)), "detect")
    if task != found:
        words = {"ground": "phrases", "detect": "boxes without phrases", "count": "points to be counted", "video": "clips"}
        raise ConfigError(f"the data have {words[found]}, so they are for task={found}, not task={task}")


def first_batches(ids: NDArray[np.int64], limit: float | None, batch_size: int) -> NDArray[np.int64]:
    """Those of ``ids`` that a loader gives out under the trainer's ``limit_*_batches``; images never shown must not count as missed."""
    if limit is None or (limit == 1.0 and isinstance(limit, float)):
        return ids
    batches = -(-len(ids) // batch_size)
    return ids[: (int(batches * limit) if isinstance(limit, float) else limit) * batch_size]


def _metric(cfg: DictConfig, **changes: Any) -> DetectionMetric:
    if task_of(cfg) == "count":
        changes["done_taught"] = teaches_done(cfg)
    return instantiate(cfg.metrics, **changes)  # type: ignore[no-any-return]


def token_budget(model: Model, source: DataSource) -> int:
    """New tokens per image: half as many again as the longest of the training answers looked at, and one object more."""
    split = source.split("train")
    picked = np.unique(np.linspace(0, len(split) - 1, min(len(split), _BUDGET_SAMPLES)).astype(int))
    samples = [split.sample(int(i), 0) for i in picked]
    resize = model.contract.resize
    assert model.target is not None, "a format that writes nothing needs no budget"
    longest = max(len(model.target.build(s, epoch=0, model_size=target_size(resize, s.width, s.height)).ids) for s in samples)
    return int(longest * 1.5) + 8
