"""The base model with its contract: tokens, rows, prompt and answer wired together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import Contract, ResizeRule
from coordvlm.coords.grid import Digits, Grid
from coordvlm.coords.vocab import CoordVocab
from coordvlm.data.images import ImageReader
from coordvlm.models.adapters import Lora, add_adapter
from coordvlm.models.backbone import Backbone
from coordvlm.models.checkpointing import parse_checkpointing
from coordvlm.models.coord_rows import CoordRows
from coordvlm.models.heads import build_heads
from coordvlm.models.loading import LoadedModel
from coordvlm.models.quantise import QLora, settle_quantisation
from coordvlm.models.tokens import END_OF_TURN, add_coord_tokens, coord_vocab
from coordvlm.sequence.collate import SequenceEncoder
from coordvlm.sequence.grammar import ObjectsGrammar
from coordvlm.sequence.prompt import PromptBuilder
from coordvlm.sequence.target import ObjectsTarget, Target
from coordvlm.utils.devices import settle
from coordvlm.utils.errors import ConfigError

if TYPE_CHECKING:
    from coordvlm.sequence.count_encoder import CountEncoder

TASKS = ("detect", "ground", "count", "video")


@dataclass
class Model:
    """A base model with its contract: everything that turns images into ids and ids into boxes."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase
    vocab: CoordVocab
    grid: Grid | Digits
    contract: Contract
    encoder: SequenceEncoder | CountEncoder
    target: Target | None  # None in task=count, which writes nothing
    loaded: LoadedModel


def build_model(cfg: DictConfig) -> Model:
    """Load the base model, add coordinate tokens, settle the contract."""
    adapter: Lora | None = instantiate(OmegaConf.select(cfg, "adapter"))  # None, and runs from before there were any: no adapter
    loaded = _load(cfg, adapter)
    grid, seq = build_coords(cfg), cfg.sequence
    markers, init = tuple(seq.markers), cfg.model.rows.init
    tokens: dict[str, Any] = {"num_bins": grid.num_bins, "coord_token": seq.coord_token, "markers": markers}
    existing = add_coord_tokens(loaded.tokenizer, **tokens)
    table = loaded.hf.get_input_embeddings().weight.detach().cpu()  # quantised weights are on their device already
    vocab = coord_vocab(loaded.tokenizer, **tokens, existing=existing, init=init, num_rows=len(table))
    min_pixels, max_pixels = loaded.pixel_limits(cfg.model.resize.min_pixels, cfg.model.resize.max_pixels)
    resize = ResizeRule(
        mode=cfg.model.resize.mode,
        patch=loaded.patch,
        merge=loaded.merge,
        min_pixels=min_pixels if cfg.model.resize.mode == "smart" else None,
        max_pixels=max_pixels if cfg.model.resize.mode == "smart" else None,
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
        details=_plain(OmegaConf.select(seq, "details")),
    )
    digits = [loaded.tokenizer.convert_tokens_to_ids(str(d)) for d in range(10)]
    rows = CoordRows(
        vocab,
        table,
        None if loaded.tied else loaded.hf.lm_head.weight.detach().cpu(),
        init=init,
        kept_ids=[i for t in existing if (i := loaded.tokenizer.convert_tokens_to_ids(t)) < len(table)] if init == "existing" else [],
        scale=cfg.model.rows.scale,
        digit_ids=digits if None not in digits else None,
        seed=cfg.seed,
    )
    checkpointing = parse_checkpointing(cfg.model.gradient_checkpointing)
    backbone = Backbone(
        loaded.hf,
        vocab,
        rows,
        image_mean=loaded.image_mean,
        image_std=loaded.image_std,
        freeze=list(cfg.model.freeze),
        checkpoint_every=checkpointing if isinstance(checkpointing, int) else 0,  # auto: settled with the first batch
        heads=build_heads(_needs(cfg), table.shape[1], seed=cfg.seed, **_plain(OmegaConf.select(cfg, "heads"))),
    )
    if task_of(cfg) == "count":  # the only task in which nothing may be written
        backbone.freeze_unread(_needs(cfg))
    if adapter is not None:
        add_adapter(backbone, adapter, source=loaded.source, seed=cfg.seed, matrices=loaded.matrices)
    encoder, target = _sequence(cfg, loaded.tokenizer, vocab, grid, resize)
    return Model(backbone, loaded.tokenizer, vocab, grid, contract, encoder, target, loaded)


def _sequence(
    cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, vocab: CoordVocab, grid: Grid | Digits, resize: ResizeRule
) -> tuple[SequenceEncoder | CountEncoder, Target | None]:
    """What turns samples into ids, and what writes the answer where there is one."""
    seq, reader = cfg.sequence, ImageReader(resize, cfg.model.max_source_pixels)
    if task_of(cfg) == "count":
        counting: CountEncoder = instantiate(seq.encoder)(
            tokenizer, vocab, grid, resize=resize, image_fn=reader, open_fn=reader.frame, max_length=cfg.model.max_length, seed=cfg.seed
        )
        return counting, None
    target: Target = instantiate(seq.target)(
        tokenizer, vocab, grid, order=seq.order, max_objects=seq.max_objects, on_too_many=seq.on_too_many, seed=cfg.seed
    )
    if target.format != seq.format:
        raise ConfigError(f"sequence.format={seq.format!r} does not fit its target, which writes {target.format!r}; choose with sequence=")
    prompt = _prompt(cfg, tokenizer, vocab.image_id)
    return SequenceEncoder(prompt, target, vocab, resize=resize, image_fn=reader, max_length=cfg.model.max_length), target


def _plain(node: DictConfig | None) -> dict[str, Any]:
    """A mapping as plain values; nothing where it is missing."""
    return {} if node is None else {str(key): value for key, value in OmegaConf.to_container(node, resolve=True).items()}  # type: ignore[union-attr]


def _load(cfg: DictConfig, adapter: Lora | None) -> LoadedModel:
    """The base, quantised if the adapter asks for it and the device can."""
    if not isinstance(adapter, QLora):
        return instantiate(cfg.model.load)  # type: ignore[no-any-return]
    load = instantiate(cfg.model.load, _partial_=True)
    quantise = settle_quantisation(adapter, settle(cfg.trainer), load)
    return load() if quantise is None else load(quantise=quantise)  # type: ignore[no-any-return]


def _needs(cfg: DictConfig) -> frozenset[str]:
    """What the recipe reads of the model; nothing where nothing is trained."""
    recipe = OmegaConf.select(cfg, "loss")
    return frozenset() if recipe is None else instantiate(recipe).needs  # type: ignore[no-any-return]


def _prompt(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, image_id: int) -> PromptBuilder:
    """``sequence.prompt`` is the task's; in task=ground, samples without a phrase (mixed in for training) are asked as in detection."""
    seq = cfg.sequence
    texts = {"text": seq.prompt} if task_of(cfg) == "detect" else {"text": seq.prompts.detect, "ground_text": seq.prompt}
    return PromptBuilder(tokenizer, image_id, **texts, class_list_text=seq.class_list_text)


def task_of(cfg: DictConfig) -> str:
    """``detect``, ``ground``, ``count`` or ``video``; runs from before there was a choice have detected."""
    task = OmegaConf.select(cfg, "task", default="detect")
    if task not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return str(task)


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
        raise ConfigError(f"decode.grammar=true needs sequence=objects; there is no grammar of {model.contract.format}")
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


