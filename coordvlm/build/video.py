"""Clips wired: the foveated model, its module and what asks it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from coordvlm.build.model import Model, build_coords
from coordvlm.contracts import Contract, ResizeRule
from coordvlm.losses.slots import CLIP_ITEMS
from coordvlm.losses.weighted_sum import WeightedSum
from coordvlm.models.coord_rows import CoordRows
from coordvlm.models.foveated.loading import LoadedFoveated, check_patch
from coordvlm.models.foveated.model import FOVEATED_NEEDS, Foveated
from coordvlm.models.foveated.queries import QueryPlan
from coordvlm.models.foveated.vision import FoveatedVision
from coordvlm.models.heads import build_heads
from coordvlm.models.tokens import END_OF_TURN, add_coord_tokens, coord_vocab
from coordvlm.modules.foveated import arm_weights
from coordvlm.modules.looker import POINT_HEADS, TOKEN_READOUTS, Looker
from coordvlm.utils.errors import ConfigError

#: Read-outs of coordinate tokens, the preferred one first.
_TOKENS = tuple(reversed(TOKEN_READOUTS))
#: Settings of the model that are keywords of the vision tower's wrapper.
_ATTENTION = ("depth", "temperature", "top_k")
_OF_MODULE = ("queries", "first_query", "iterations")


def require_clips(losses: WeightedSum) -> None:
    """Refuse a recipe of another task.

    Raises:
        ConfigError: a term on what clips have not, or one that needs what the foveated model does not give.
    """
    losses.require(FOVEATED_NEEDS, who="the foveated model")
    losses.require_items(CLIP_ITEMS, who="task=video")


def clip_readouts(needs: Collection[str]) -> tuple[str, ...]:
    """The read-outs of a point whose fields a recipe trains, the preferred one first. Words have none; ``local`` stands for them."""
    heads = (POINT_HEADS,) if "point_xy" in needs else ()
    tokens = _TOKENS if {"slot_logits", "slot_lse"} & set(needs) else ()
    return (*tokens, *heads) or _TOKENS[:1]


def clip_settings(cfg: DictConfig, losses: WeightedSum) -> dict[str, Any]:
    """``cfg.decode`` as plain values with its read-out settled; a part of the evaluation protocol.

    Raises:
        ConfigError: a read-out that the recipe does not train; a setting that clips have not.
    """
    settings = {str(key): value for key, value in OmegaConf.to_container(cfg.decode).items()}  # type: ignore[union-attr]
    given = clip_readouts(losses.needs)
    if settings["readout"] == "auto":
        settings["readout"] = given[0]
    if settings["readout"] not in given:
        raise ConfigError(f"decode.readout={settings['readout']} is not trained by this loss, which gives {', '.join(given)}")
    if settings["max_new_tokens"] is None:
        raise ConfigError("decode.max_new_tokens must be a number in task=video: it is not measured on training answers")
    if settings["grammar"] or settings["score"] != "one":
        raise ConfigError("decode.grammar and decode.score have no meaning in task=video: leave them at false and 'one'")
    return settings


def build_clip_model(cfg: DictConfig) -> Model:
    """Load both parts, add coordinate and mode tokens, settle the contract."""
    if OmegaConf.select(cfg, "adapter") is not None and cfg.adapter:
        raise ConfigError("task=video trains without adapters: leave adapter=none")
    loaded: LoadedFoveated = instantiate(cfg.model.load)
    check_patch(int(cfg.model.frame_size), loaded.patch, loaded.source)
    grid, seq = build_coords(cfg), cfg.sequence
    markers, init = tuple(seq.markers), cfg.model.rows.init
    tokens: dict[str, Any] = {"num_bins": grid.num_bins, "coord_token": seq.coord_token, "markers": markers}
    existing = add_coord_tokens(loaded.tokenizer, **tokens)
    table = loaded.language.get_input_embeddings().weight.detach().cpu()
    vocab = coord_vocab(loaded.tokenizer, **tokens, existing=existing, init=init, num_rows=len(table), image_token=None)
    head = None if loaded.tied else loaded.language.lm_head.weight.detach().cpu()
    digits = [loaded.tokenizer.convert_tokens_to_ids(str(d)) for d in range(10)]
    rows = CoordRows(
        vocab, table, head, init=init, scale=cfg.model.rows.scale, digit_ids=digits if None not in digits else None, seed=cfg.seed
    )
    size = int(cfg.model.frame_size)
    resize = ResizeRule(mode="square", patch=loaded.patch, merge=1, size=(size, size))
    contract = Contract(
        coords=grid.name, num_bins=grid.num_bins, scale=grid.scale, format=seq.format, order=seq.order, prompt=seq.prompt, class_list=False,
        markers=markers, coord_token=seq.coord_token, end_token=END_OF_TURN, resize=resize,
        details=OmegaConf.to_container(seq.details, resolve=True),  # type: ignore[arg-type]
    )
    needs = instantiate(cfg.loss).needs
    width = table.shape[1]
    vision = FoveatedVision(
        loaded.tower, width=width, image_mean=loaded.image_mean, image_std=loaded.image_std,
        **{name: cfg.model.attention[name] for name in _ATTENTION},
    )
    latents = None if cfg.model.latents is None or "latent" not in needs else instantiate(cfg.model.latents)(width=width)
    if "latent" in needs and latents is None:
        raise ConfigError("this loss draws latents of frames, and model.latents=null names no encoder of them")
    checkpointing = cfg.model.gradient_checkpointing
    module = cfg.module
    queries = QueryPlan(
        width, mode=module.queries, first=module.first_query, trained=arm_weights(module.coarse_weight, module.fine_weight),
        num_frames=cfg.model.num_frames, seed=cfg.seed,
    )
    backbone = Foveated(
        vision, loaded.language, vocab, rows, queries=queries,
        token_rms=cfg.model.token_rms, iterations=module.iterations,
        heads=build_heads(needs, width, seed=cfg.seed, **OmegaConf.to_container(cfg.heads, resolve=True)),  # type: ignore[arg-type]
        latents=latents, freeze=list(cfg.model.freeze), checkpoint_every=checkpointing if isinstance(checkpointing, int) else 0,
    )
    encoder = instantiate(seq.encoder)(loaded.tokenizer, vocab, grid, max_length=cfg.model.max_length)
    return Model(backbone, loaded.tokenizer, vocab, grid, contract, encoder, None, loaded)  # type: ignore[arg-type]


def clip_module(cfg: DictConfig) -> Any:
    """What makes the LightningModule."""
    return instantiate({key: value for key, value in cfg.module.items() if key not in _OF_MODULE})


def build_looker(cfg: DictConfig, model: Model, settings: dict[str, Any]) -> Looker:
    """What asks the model.

    Args:
        settings: of ``clip_settings``.
    """
    trained = arm_weights(cfg.module.coarse_weight, cfg.module.fine_weight)
    given = clip_readouts(instantiate(cfg.loss).needs)
    return Looker(
        model.backbone, model.tokenizer, main="fine" if "fine" in trained else "coarse", arms=tuple(settings["arms"]),  # type: ignore[arg-type]
        max_new_tokens=settings["max_new_tokens"], window=settings["local_window"], bin_values=model.grid.bin_values(),  # type: ignore[union-attr]
        point_tokens=given != (POINT_HEADS,),
    )
