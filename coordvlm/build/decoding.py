"""Decoding wired: what ``decode`` of a configuration asks for, and the answerer that does it. Needs no data."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from coordvlm.build.model import Model, build_grammar, task_of
from coordvlm.coords.grid import Grid
from coordvlm.models.decode import Decoder
from coordvlm.models.sampling import Sampling
from coordvlm.modules.answerer import Answerer
from coordvlm.sequence.parse import READOUTS
from coordvlm.utils.errors import ConfigError

#: Settings of several attempts, with what a run does that has none of them.
_ONCE: dict[str, Any] = {"samples": 1, "retries": 0}
_DRAWN = ("temperature", "top_p", "seed")


def decode_settings(cfg: DictConfig) -> dict[str, Any]:
    """``cfg.decode`` as plain values; a part of the evaluation protocol.

    Where nothing is drawn, the settings of drawing decide nothing and are left out, so that runs from before there were any compare.

    Raises:
        ConfigError: an unknown read-out; several attempts or a grammar in a task that has none.
    """
    settings = {str(key): value for key, value in OmegaConf.to_container(cfg.decode).items()}  # type: ignore[union-attr]
    if settings["readout"] not in READOUTS:
        raise ConfigError(f"decode.readout must be one of {', '.join(READOUTS)}, got {settings['readout']!r}")
    task = task_of(cfg)
    if settings["grammar"] and task == "ground":
        raise ConfigError("decode.grammar=true is for task=detect: there is no grammar of the answer to a phrase")
    if all(settings.get(key, value) == value for key, value in _ONCE.items()):
        return {key: value for key, value in settings.items() if key not in {*_ONCE, *_DRAWN}}
    if task != "ground":
        asked = " ".join(f"decode.{key}={settings.get(key, value)}" for key, value in _ONCE.items())
        raise ConfigError(f"{asked}: only task=ground asks several times; lists of objects have no consensus")
    if missing := [key for key in _DRAWN if settings.get(key) is None]:
        raise ConfigError("decode.samples and decode.retries need a value of " + ", ".join(f"decode.{key}" for key in missing))
    return _ONCE | settings


def build_answerer(cfg: DictConfig, model: Model, settings: dict[str, Any]) -> Answerer:
    """What turns prompts into predictions.

    Args:
        settings: of ``decode_settings``, with the token budget filled in.
    """
    decoder = Decoder(
        model.backbone,
        model.grid.bin_values() if isinstance(model.grid, Grid) else torch.empty(0),
        max_new_tokens=settings["max_new_tokens"],
        mass_radius=settings["mass_radius"],
        local_window=settings["local_window"],
        grammar=build_grammar(model) if settings["grammar"] else None,
    )
    parser = instantiate(cfg.sequence.parser)(model.tokenizer, model.vocab, model.grid, score=settings["score"])
    attempts = {key: settings[key] for key in _ONCE if key in settings}
    sampling = Sampling(**{key: settings[key] for key in _DRAWN}) if attempts else None
    return Answerer(decoder, parser, **attempts, sampling=sampling)
