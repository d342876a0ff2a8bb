"""Config -> objects: the only caller of ``hydra.utils.instantiate``, and where siblings are wired to each other."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from coordvlm.callbacks.checkpoint import FolderCheckpoint
from coordvlm.callbacks.csv_log import CSVLog
from coordvlm.contracts import Contract, GroundTruth, ResizeRule
from coordvlm.coords.grid import Digits, Grid
from coordvlm.coords.vocab import CoordVocab
from coordvlm.data.datamodule import CoordDataModule
from coordvlm.data.filtered import limit_objects
from coordvlm.data.images import ImageReader, target_size
from coordvlm.data.loader import first_samples
from coordvlm.data.overfit import FirstBatch
from coordvlm.data.source import DataSource
from coordvlm.losses.weighted_sum import WeightedSum
from coordvlm.metrics.detection import DetectionMetric
from coordvlm.metrics.protocol import protocol_hash
from coordvlm.models.backbone import Backbone
from coordvlm.models.coord_rows import CoordRows
from coordvlm.models.decode import GreedyDecoder
from coordvlm.models.loading import LoadedModel
from coordvlm.models.tokens import END_OF_TURN, add_coord_tokens, coord_vocab
from coordvlm.modules.coord_lm import CoordLM
from coordvlm.modules.optim import OptimSettings
from coordvlm.modules.strategies import trainer_arguments
from coordvlm.sequence.collate import SequenceEncoder
from coordvlm.sequence.grammar import ObjectsGrammar
from coordvlm.sequence.parse import READOUTS
from coordvlm.sequence.prompt import PromptBuilder
from coordvlm.sequence.target import ObjectsTarget, Target
from coordvlm.utils import logs
from coordvlm.utils.errors import ConfigError

#: Keywords that this module adds to nodes it instantiates; ``validate_targets`` must not miss them.
_OURS = ("callbacks", "logger", "default_root_dir", "enable_checkpointing", "use_distributed_sampler", "enable_model_summary")
SUPPLIED = {"trainer": set(_OURS)}
C = TypeVar("C")
#: Training answers that the token budget of decoding is measured on.
_BUDGET_SAMPLES = 512
_BUDGET_RULE = "1.5 x the longest training answer + 8"


@dataclass
class Model:
    """A base model with its contract: everything that turns images into ids and ids into boxes."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase
    vocab: CoordVocab
    grid: Grid | Digits
    contract: Contract
    encoder: SequenceEncoder
    target: Target
    loaded: LoadedModel


def build_model(cfg: DictConfig) -> Model:
    """Load the base model, add coordinate tokens, settle the contract."""
    loaded: LoadedModel = instantiate(cfg.model.load)
    grid, seq = build_coords(cfg), cfg.sequence
    markers, init = tuple(seq.markers), cfg.model.rows.init
    tokens: dict[str, Any] = {"num_bins": grid.num_bins, "coord_token": seq.coord_token, "markers": markers}
    existing = add_coord_tokens(loaded.tokenizer, **tokens)
    table = loaded.hf.get_input_embeddings().weight
    vocab = coord_vocab(loaded.tokenizer, **tokens, existing=existing, init=init, num_rows=len(table))
    resize = ResizeRule(
        mode=cfg.model.resize.mode,
        patch=loaded.patch,
        merge=loaded.merge,
        min_pixels=cfg.model.resize.min_pixels,
        max_pixels=cfg.model.resize.max_pixels,
        size=None if cfg.model.resize.size is None else tuple(cfg.model.resize.size),
    )
    contract = Contract(
        coords=grid.name,
        num_bins=grid.num_bins,
        scale=grid.scale,
        format=seq.format,
        order=seq.order,
        prompt=seq.prompt,
        class_list=OmegaConf.select(cfg, "data.source.class_list", default="none") != "none",
        markers=markers,
        coord_token=seq.coord_token or "",
        end_token=END_OF_TURN,
        resize=resize,
    )
    tied = bool(loaded.hf.config.tie_word_embeddings)
    digits = [loaded.tokenizer.convert_tokens_to_ids(str(d)) for d in range(10)]
    rows = CoordRows(
        vocab,
        table,
        None if tied else loaded.hf.lm_head.weight,
        init=init,
        kept_ids=[i for t in existing if (i := loaded.tokenizer.convert_tokens_to_ids(t)) < len(table)] if init == "existing" else [],
        scale=cfg.model.rows.scale,
        digit_ids=digits if None not in digits else None,
        seed=cfg.seed,
    )
    backbone = Backbone(loaded.hf, vocab, rows, image_mean=loaded.image_mean, image_std=loaded.image_std, freeze=list(cfg.model.freeze))
    target: Target = instantiate(seq.target)(
        loaded.tokenizer,
        vocab,
        grid,
        order=seq.order,
        max_objects=seq.max_objects,
        on_too_many=seq.on_too_many,
        seed=cfg.seed,
    )
    if target.format != seq.format:
        raise ConfigError(f"sequence.format={seq.format!r} does not fit its target, which writes {target.format!r}; choose with sequence=")
    encoder = SequenceEncoder(
        PromptBuilder(loaded.tokenizer, vocab.image_id, text=seq.prompt, class_list_text=seq.class_list_text),
        target,
        vocab,
        resize=resize,
        image_fn=ImageReader(resize, cfg.model.max_source_pixels),
        max_length=cfg.model.max_length,
    )
    return Model(backbone, loaded.tokenizer, vocab, grid, contract, encoder, target, loaded)


def build_coords(cfg: DictConfig) -> Grid | Digits:
    """How coordinates are written; refuses one that the sequence format cannot write."""
    grid: Grid | Digits = instantiate(cfg.coords)
    if grid.name not in cfg.sequence.coords:
        fitting = " or ".join(f"coords={name}" for name in cfg.sequence.coords)
        raise ConfigError(f"sequence={cfg.sequence.format} cannot write coords={grid.name}: use {fitting}")
    return grid


def build_grammar(model: Model) -> ObjectsGrammar:
    """The grammar over the head's columns."""
    if not isinstance(model.target, ObjectsTarget):
        raise ConfigError(f"decode.grammar=true needs sequence=objects; there is no grammar of {model.target.format}")
    rows, vocab, tokenizer = model.backbone.rows, model.vocab, model.tokenizer

    def column(token_id: int) -> int:
        return int(rows.columns(torch.tensor(token_id)))

    added = {i for i in tokenizer.get_added_vocab().values() if i not in set(vocab.new_ids.tolist())}
    unused = range(min(vocab.num_ids, rows.num_base), rows.num_base)
    forbidden = {column(i) for i in added | {vocab.image_id, vocab.pad_id}} | set(unused) | set(rows.shadow.nonzero().flatten().tolist())
    texts = tokenizer.batch_decode([[i] for i in range(min(vocab.num_ids, rows.num_base))])
    return ObjectsGrammar(
        num_columns=model.backbone.num_columns,
        coord_columns=range(rows.num_base, rows.num_base + rows.num_bins),
        start=column(vocab.marker_ids[model.target.start]),
        end=column(vocab.marker_ids[model.target.end]),
        end_of_turn=column(vocab.end_id),
        forbidden=sorted(forbidden),
        blank=[i for i, text in enumerate(texts) if not text.strip()],
    )


def token_budget(model: Model, source: DataSource) -> int:
    """New tokens per image: half as many again as the longest of the training answers looked at, and one object more."""
    split = source.split("train")
    picked = np.unique(np.linspace(0, len(split) - 1, min(len(split), _BUDGET_SAMPLES)).astype(int))
    samples = [split.sample(int(i), 0) for i in picked]
    resize = model.contract.resize
    longest = max(len(model.target.build(s, epoch=0, model_size=target_size(resize, s.width, s.height)).ids) for s in samples)
    return int(longest * 1.5) + 8


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
        return f"{len(self.truth.image_ids)} {self.split} images"

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The evaluation protocol as plain values, with its hash under ``hash``."""
        values = {
            "data": self.truth.digest(),
            "split": self.split,
            "image_limits": {"max_source_pixels": self.cfg.model.max_source_pixels},
            "backend": self.cfg.metrics.backend,
            **self.decode,
            # the rule, not its outcome, which depends on how long a format is
            "max_new_tokens": _BUDGET_RULE if self.cfg.decode.max_new_tokens is None else self.cfg.decode.max_new_tokens,
        }
        return {**values, "hash": protocol_hash(values)}


def build_experiment(cfg: DictConfig, *, split: str = "test", budget: int | None = None) -> Experiment:
    """Everything but the trainer.

    Args:
        split: what the module's test metrics are for: ``test`` or ``val`` (all of it).
        budget: new tokens per image where ``decode.max_new_tokens`` is null; None measures them on the training answers.
    """
    if cfg.decode.readout not in READOUTS:
        raise ConfigError(f"decode.readout must be one of {', '.join(READOUTS)}, got {cfg.decode.readout!r}")
    losses: WeightedSum = instantiate(cfg.loss)
    readouts: tuple[str, ...] = READOUTS
    if not build_coords(cfg).num_bins:  # what is written is what is read
        losses, readouts = losses.without_slots(format=cfg.sequence.format), (cfg.decode.readout,)
    model = build_model(cfg)
    source: DataSource = instantiate(cfg.data.source)
    source = limit_objects(source, max_objects=cfg.sequence.max_objects, on_too_many=cfg.sequence.on_too_many)
    if cfg.overfit:
        source = FirstBatch(source, first_samples(source, batch_size=cfg.data.batch_size, seed=cfg.seed))
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
    )
    decode = OmegaConf.to_container(cfg.decode)
    if decode["max_new_tokens"] is None:  # type: ignore[index, call-overload]
        decode["max_new_tokens"] = budget or token_budget(model, source)  # type: ignore[index, call-overload]
    assert isinstance(decode, dict)
    decoder = GreedyDecoder(
        model.backbone,
        model.grid.bin_values() if isinstance(model.grid, Grid) else torch.empty(0),
        max_new_tokens=decode["max_new_tokens"],
        mass_radius=decode["mass_radius"],
        local_window=decode["local_window"],
        grammar=build_grammar(model) if decode["grammar"] else None,
    )
    parser = instantiate(cfg.sequence.parser)(model.tokenizer, model.vocab, model.grid, score=decode["score"])
    settings: OptimSettings = instantiate(cfg.optim)
    module = CoordLM(
        backbone=model.backbone,
        losses=losses,
        decoder=decoder,
        parser=parser,
        val_metric=_metric(cfg, num_replicates=0),
        test_metrics={
            name: _metric(cfg) if name == decode["readout"] else _metric(cfg, num_replicates=0)
            for name in sorted(readouts, key=lambda n: n != decode["readout"])
        },
        optim=settings,
        readout=decode["readout"],
    )
    batch = cfg.data.eval_batch_size
    val_ids = first_batches(data.val_ids(), cfg.trainer.limit_val_batches, batch)
    ids = first_batches(np.sort(source.split(split).ids), cfg.trainer.limit_test_batches, batch)
    if not len(ids):
        raise ConfigError(f"trainer.limit_test_batches={cfg.trainer.limit_test_batches} leaves no image to evaluate")
    truth, val_truth = source.truth(split).subset(ids.tolist()), source.truth("val").subset(val_ids.tolist())
    module.val_metric.set_truth(val_truth)  # type: ignore[operator]
    for metric in module.test_metrics.values():
        metric.set_truth(truth)  # type: ignore[operator]
    named = {str(k): v for k, v in decode.items()}
    return Experiment(cfg, model, source, data, losses, module, named, source.split(split).name, truth, val_truth)


def first_batches(ids: NDArray[np.int64], limit: float | None, batch_size: int) -> NDArray[np.int64]:
    """Those of ``ids`` that a loader gives out under the trainer's ``limit_*_batches``; images never shown must not count as missed."""
    if limit is None or (limit == 1.0 and isinstance(limit, float)):
        return ids
    batches = -(-len(ids) // batch_size)
    return ids[: (int(batches * limit) if isinstance(limit, float) else limit) * batch_size]


def _metric(cfg: DictConfig, **changes: Any) -> DetectionMetric:
    return instantiate(cfg.metrics, **changes)  # type: ignore[no-any-return]


def build_trainer(cfg: DictConfig, run_dir: Path, contract: Contract, *, logged: bool = True) -> Trainer:
    """The Lightning trainer with our callbacks; checkpoints are folders of our own."""
    logs.adopt("lightning", "lightning.pytorch", "lightning.fabric")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 on torch 2.13
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # debug=overfit: one batch an epoch
    callbacks: list[Any] = []
    if logged:
        callbacks.append(FolderCheckpoint(run_dir / "checkpoints", contract, monitor=cfg.callbacks.checkpoint.monitor))
    callbacks += [instantiate(node) for name, node in cfg.callbacks.items() if "_target_" in node]
    loggers = [instantiate(node) for node in cfg.logger.values()] if logged else []
    callbacks += [x for x in loggers if isinstance(x, Callback)]  # a tracker gets evaluations beside scalars
    trainer: Trainer = instantiate(
        cfg.trainer,
        **trainer_arguments(cfg.trainer),
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(run_dir),
        enable_checkpointing=False,
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
    return trainer


def callback(trainer: Trainer, kind: type[C]) -> C:
    """The trainer's callback of a class."""
    return next(x for x in trainer.callbacks if isinstance(x, kind))  # type: ignore[attr-defined]


def csv_log(trainer: Trainer) -> CSVLog | None:
    """The trainer's CSV log, if it has one."""
    return next((x for x in trainer.loggers if isinstance(x, CSVLog)), None)
