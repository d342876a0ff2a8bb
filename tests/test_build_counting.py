"""Settings of counting: what is measured enters the protocol, and what cannot be measured is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from coordvlm.build.counting import count_settings, require_questions
from coordvlm.utils.errors import ConfigError
from tests.compose import CONF, compose

SPATIAL: Any = SimpleNamespace(needs=frozenset({"token_next", "token_hit", "token_offset", "done_logit"}))


def config(*, target: str = "next", mode: str = "mixed", **metrics: Any) -> DictConfig:
    decode, counting = (yaml.safe_load((CONF / name).read_text()) for name in ("decode/count.yaml", "metrics/counting.yaml"))
    return OmegaConf.create({"decode": decode, "metrics": counting | metrics, "sequence": {"target": target, "mode": mode}})


@pytest.mark.parametrize("any_unmarked", [False, True])
def test_what_errors_are_measured_to_is_part_of_the_protocol(any_unmarked: bool) -> None:
    found = count_settings(config(any_unmarked=any_unmarked, tolerance_px=4.0), SPATIAL)
    assert (found["readout"], found["any_unmarked"], found["tolerance_px"]) == ("spatial", any_unmarked, 4.0)


def test_any_unmarked_object_is_right_where_there_is_no_next_one() -> None:
    with pytest.raises(ConfigError, match=r"sequence\.target=nearest knows no next object.*metrics\.any_unmarked=true"):
        count_settings(config(target="nearest"), SPATIAL)
    assert count_settings(config(target="nearest", any_unmarked=True), SPATIAL)["any_unmarked"]


def test_no_loop_is_run_where_its_end_is_never_taught() -> None:
    cfg = config(mode="regression")
    with pytest.raises(ConfigError, match=r"sequence\.mode=regression never asks whether all is marked.*decode\.loop=false"):
        count_settings(cfg, SPATIAL)
    cfg.decode.loop = False
    assert not count_settings(cfg, SPATIAL)["loop"]


@pytest.mark.parametrize(("mode", "schedule", "refused"), [
    ("regression", "dual", True), ("regression", "alternate", True), ("regression", "single", False), ("mixed", "dual", False),
])  # fmt: skip
def test_a_task_that_would_be_asked_nothing_is_refused(mode: str, schedule: str, refused: bool, tmp_path: Path) -> None:
    cfg = compose(tmp_path, "data=dots", "loss=three_stage_heads", f"schedule={schedule}", f"sequence.mode={mode}")
    losses = instantiate(cfg.loss)
    if not refused:
        require_questions(cfg, losses)
        return
    with pytest.raises(ConfigError, match=r"schedule\.tasks\.classification learns .*done_bce.*mode=regression never asks"):
        require_questions(cfg, losses)
