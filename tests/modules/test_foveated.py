"""Weights of passes and iterations, and the mix of tasks."""

from __future__ import annotations

from typing import Any

import pytest

from coordvlm.modules.foveated import TaskMix, arm_weights, iteration_weights
from coordvlm.utils.errors import ConfigError

KNOWN = {"text_ce": 1.0, "latent_mse": 0.5}


@pytest.mark.parametrize(("kind", "expected"), [("last", [0, 0, 1]), ("all", [1 / 3] * 3), ("progressive", [1 / 6, 2 / 6, 3 / 6])])
def test_iterations_weigh_1_together(kind: str, expected: list[float]) -> None:
    assert iteration_weights(kind, 3) == pytest.approx(expected)
    assert iteration_weights(kind, 1) == [1.0]


def test_passes_without_a_weight_are_not_trained() -> None:
    assert arm_weights(1.0, 1.0) == {"coarse": 1.0, "fine": 1.0}
    assert arm_weights(0, 2) == {"fine": 2.0}
    assert arm_weights(0.5, 0.0) == {"coarse": 0.5}


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "1", None])
def test_weights_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"module.coarse_weight must be a number of at least 0"):
        arm_weights(value, 1.0)
    with pytest.raises(ConfigError, match=r"module.fine_weight must be a number of at least 0"):
        arm_weights(1.0, value)


def test_something_must_train() -> None:
    with pytest.raises(ConfigError, match=r"are both 0, so nothing would be trained"):
        arm_weights(0, 0.0)
    with pytest.raises(ConfigError, match=r"module.iteration_loss must be one of last, all, progressive, got 'first'"):
        iteration_weights("first", 2)


def test_without_a_mix_every_step_trains_all() -> None:
    assert {TaskMix(None, KNOWN, seed=0).draw(step) for step in range(5)} == {None}


def test_shares_are_how_often_a_task_is_drawn() -> None:
    mix = TaskMix({"a": {"share": 3, "terms": ["text_ce"]}, "b": {"share": 1.0, "terms": ["text_ce", "latent_mse"]}}, KNOWN, seed=1)
    drawn = [mix.draw(step) for step in range(800)]
    assert set(drawn) == {frozenset({"text_ce"}), frozenset({"text_ce", "latent_mse"})}
    assert abs(sum(d == frozenset({"text_ce"}) for d in drawn) / 800 - 0.75) < 0.05


@pytest.mark.parametrize(("tasks", "message"), [
    ({"a": {"share": 1}}, r"module.mix.a needs share and terms, got \['share'\]"),
    ({"a": {"share": 0, "terms": ["text_ce"]}}, "module.mix.a.share must be a number above 0, got 0"),
    ({"a": {"share": float("nan"), "terms": ["text_ce"]}}, "module.mix.a.share must be a number above 0"),
    ({"a": {"share": 1, "terms": ["giou"]}}, "module.mix.a.terms names 'giou', which the recipe has not; it has text_ce, latent_mse"),
    ({"a": {"share": 1, "terms": []}}, "module.mix.a.terms is empty"),
    ({"a": {"share": 1, "terms": ["text_ce"]}}, "module.mix has no task that trains 'latent_mse'"),
])  # fmt: skip
def test_mixes_without_a_meaning_are_refused(tasks: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskMix(tasks, KNOWN, seed=0)
