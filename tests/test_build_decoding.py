"""What ``decode`` of a configuration means, also of one from before there were several attempts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from coordvlm.build.decoding import build_answerer, decode_settings
from coordvlm.build.model import build_model
from coordvlm.build.video import clip_settings
from coordvlm.models.sampling import Sampling
from coordvlm.utils.errors import ConfigError
from tests.compose import compose

NEW = {"samples", "retries", "temperature", "top_p", "seed"}


def of_before(tmp_path: Path, *overrides: str) -> DictConfig:
    """A configuration that has no such settings."""
    cfg = compose(tmp_path, *overrides)
    OmegaConf.set_struct(cfg, False)
    for key in NEW:
        del cfg.decode[key]
    return cfg


@pytest.mark.parametrize("data", ["shapes", "phrases"])
def test_one_attempt_is_the_protocol_it_always_was(tmp_path: Path, data: str) -> None:
    """Settings of drawing decide nothing then, so evaluations from before still compare."""
    old = decode_settings(of_before(tmp_path, f"data={data}"))
    assert not NEW & set(old)
    assert decode_settings(compose(tmp_path, f"data={data}")) == old
    assert decode_settings(compose(tmp_path, f"data={data}", "decode.temperature=5", "decode.seed=7")) == old


def test_several_attempts_are_a_protocol_with_all_that_decides_them(tmp_path: Path) -> None:
    found = decode_settings(compose(tmp_path, "data=phrases", "decode=consensus", "decode.seed=7"))
    assert {key: found[key] for key in NEW} == {"samples": 5, "retries": 1, "temperature": 0.7, "top_p": 0.9, "seed": 7}


def test_an_old_run_is_asked_again_once_it_is_told_how(tmp_path: Path) -> None:
    cfg = of_before(tmp_path, "data=phrases")
    cfg.decode.retries = 2
    with pytest.raises(ConfigError, match=r"need a value of decode\.temperature, decode\.top_p, decode\.seed"):
        decode_settings(cfg)
    cfg.decode.update(temperature=1.0, top_p=1.0, seed=0)
    assert (decode_settings(cfg)["samples"], decode_settings(cfg)["retries"]) == (1, 2)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data=shapes", "decode.samples=3"), "only task=ground asks several times"),
        (("data=shapes", "decode.retries=1"), "only task=ground"),
        (("data=phrases", "decode.grammar=true"), "decode.grammar=true is for task=detect"),
        (("data=phrases", "decode.readout=mean"), "decode.readout must be one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(tmp_path: Path, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        decode_settings(compose(tmp_path, *overrides))


def test_settings_reach_the_answerer(tmp_path: Path) -> None:
    cfg = compose(tmp_path, "data=phrases", "decode.samples=3", "decode.retries=2", "decode.temperature=0.5", "decode.max_new_tokens=9")
    model = build_model(cfg)
    answerer = build_answerer(cfg, model, decode_settings(cfg))
    assert (answerer.samples, answerer.retries, answerer.asks_once) == (3, 2, False)
    assert answerer.sampling == Sampling(0.5, 0.9, 0)
    assert answerer.decoder.max_new_tokens == 9
    plain = build_answerer(cfg, model, {**decode_settings(compose(tmp_path, "data=phrases")), "max_new_tokens": 9})
    assert (plain.asks_once, plain.sampling) == (True, None)


def test_a_token_budget_of_clips_is_a_number() -> None:
    decode = {"readout": "auto", "max_new_tokens": None, "grammar": False, "score": "one"}
    losses: Any = SimpleNamespace(needs=frozenset({"text_nll"}))
    with pytest.raises(ConfigError, match=r"decode\.max_new_tokens must be a number in task=video"):
        clip_settings(OmegaConf.create({"decode": decode}), losses)
    assert clip_settings(OmegaConf.create({"decode": {**decode, "max_new_tokens": 8}}), losses)["readout"] == "local"
