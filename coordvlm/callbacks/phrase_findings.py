"""What a grounding evaluation looks into beside its metrics: where it fails, whether phrase and image are read, a constant offset."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray

from coordvlm.callbacks.split_images import SplitImages
from coordvlm.contracts import Prediction, ResizeRule
from coordvlm.contracts.sample import PhraseTruth
from coordvlm.data.controls import BlankImages, SelectedSplit, ShuffledPhrases, choose
from coordvlm.data.images import target_size
from coordvlm.data.loader import Collate, EncodedSplit, EvalLoader
from coordvlm.data.phrase_checks import normalise
from coordvlm.metrics.failures import failure_table, failures_csv, failures_to_json
from coordvlm.metrics.offset import estimate_offset, offset_to_json
from coordvlm.metrics.phrase_controls import Control, control, controls_to_json
from coordvlm.metrics.phrase_log import phrases_csv
from coordvlm.metrics.phrases import Outcomes, outcomes
from coordvlm.reports.summary import PhraseFindings
from coordvlm.utils.errors import DataError
from coordvlm.utils.files import atomic_write_json, atomic_write_text

_log = logging.getLogger(__name__)


def write_findings(folder: Path, experiment: Any, kinds: Mapping[int, str]) -> PhraseFindings:
    """grounding.csv, failures.json and failures.csv, and the entry ``offset`` of metrics.json, which is there already.

    Args:
        experiment: a ``build.Experiment`` of phrases that has been tested. kinds: phrase id -> kind of phrase, where there is one.
    """
    truth: PhraseTruth = experiment.truth
    found = outcomes(truth, {int(p.sample_id): p for p in experiment.module.predictions})
    rows = failure_table(truth, found, kinds)
    atomic_write_text(folder / "grounding.csv", phrases_csv(truth, found, kinds))
    atomic_write_json(folder / "failures.json", failures_to_json(rows))
    atomic_write_text(folder / "failures.csv", failures_csv(rows))
    offset = estimate_offset(found, model_wh=model_sizes(truth, experiment.model.contract.resize))
    if offset.convention:
        _log.warning("%s", offset.sentence)
    _extend(folder / "metrics.json", offset=offset_to_json(offset))
    return PhraseFindings(tuple(rows), offset)


def kinds_of(images: SplitImages, ids: Iterable[int]) -> dict[int, str]:
    """Phrase id -> ``Sample.meta["kind"]``, for samples that have one."""
    kinds = {i: images.sample(i).meta.get("kind") for i in ids}
    return {i: kind for i, kind in kinds.items() if isinstance(kind, str)}


def write_controls(folder: Path, controls: Mapping[str, Control]) -> None:
    """The entry ``controls`` of metrics.json, and a warning for each input that the model ignores."""
    for found in controls.values():
        if found.ignored:
            _log.warning("CONTROL FAILED: %s", found.sentence)
    _extend(folder / "metrics.json", controls=controls_to_json(dict(controls)))


def _extend(file: Path, **more: Any) -> None:
    atomic_write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **more})


def model_sizes(truth: PhraseTruth, rule: ResizeRule) -> NDArray[np.float64]:
    """float64[I, 2]: (width, height) in px that the contract's resize rule gives each phrase's image; NaN for a refused one."""
    known: dict[tuple[float, float], tuple[float, float]] = {}
    for size in {(w, h) for w, h in truth.image_wh.tolist()}:
        try:
            width, height = target_size(rule, round(size[0]), round(size[1]))
        except DataError:  # too elongated: such an image was not decoded either
            known[size] = (np.nan, np.nan)
        else:
            known[size] = (float(width), float(height))
    return np.asarray([known[w, h] for w, h in truth.image_wh.tolist()], dtype=np.float64).reshape(-1, 2)


def run_controls(experiment: Any, trainer: lightning.Trainer, *, asked: str, samples: int) -> dict[str, Control]:
    """Answer the same phrases once permuted and once with blank images. On all ranks; the result is the same on each.

    Needs the predictions of the test that has just been run (``module.predictions``), with which they are compared.

    Args:
        experiment: a ``build.Experiment`` of phrases. asked: the split's name as asked for. samples: at most so many phrases.
    """
    module, cfg = experiment.module, experiment.cfg
    truth: PhraseTruth = experiment.truth.subset(choose(experiment.truth.image_ids, samples).tolist())
    if len(truth.image_ids) < trainer.world_size:
        return {}
    split, ids = experiment.source.split(asked), truth.image_ids
    shuffled = ShuffledPhrases(split, ids, truth.phrases, cfg.seed)
    unchanged = sum(normalise(a) == normalise(b) for a, b in zip(truth.phrases, shuffled.phrases, strict=True))
    splits: dict[str, tuple[SelectedSplit, int]] = {
        "shuffled": (shuffled, unchanged), "blank": (BlankImages(split, ids, cfg.model.max_source_pixels), 0),
    }
    plain = _outcomes(truth, module.predictions)
    metric = module.test_metrics[module.readout]
    return {
        name: control(
            name, truth, plain, _outcomes(truth, _answers(experiment, trainer, chosen)), num_replicates=metric.num_replicates,
            seed=metric.seed, unchanged=kept,
        )
        for name, (chosen, kept) in splits.items()
    }


def _outcomes(truth: PhraseTruth, predictions: list[Prediction]) -> Outcomes:
    wanted = set(truth.image_ids.tolist())
    return outcomes(truth, {int(p.sample_id): p for p in predictions if int(p.sample_id) in wanted})


def _answers(experiment: Any, trainer: lightning.Trainer, split: SelectedSplit) -> list[Prediction]:
    """The module's answers to a split; those of all ranks."""
    cfg, encoder = experiment.cfg, experiment.model.encoder
    loader = EvalLoader(
        EncodedSplit(split, encoder, with_answer=False), np.arange(len(split)), Collate(encoder),
        batch_size=cfg.data.eval_batch_size, num_workers=cfg.data.num_workers, pin_memory=torch.cuda.is_available(),
        skip_errors=cfg.data.on_error == "skip", rank=trainer.global_rank, world_size=trainer.world_size,
    )
    trainer.predict(experiment.module, dataloaders=loader, return_predictions=False)
    answers: list[Prediction] = experiment.module.answers
    return answers
