from __future__ import annotations

import json
import logging
import statistics
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coordvlm.callbacks.gradient_health import GradientHealth, group_of
from coordvlm.modules.dual_lm import DualLM
from coordvlm.utils.errors import ConfigError
from tests.modules.test_coord_lm import Gradients, Loader, batches, module, trainer
from tests.modules.test_dual_lm import TERMS, by_hand, fit, made, windows
from tests.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def health(**changes: Any) -> GradientHealth:
    settings = {"every_n_steps": 1, "healthy": [0.0, 1e9], "warn_every_n_steps": 1, "spike_factor": 3.0, "spike_window": 20}
    return GradientHealth(**{**settings, **changes})


def norm(gradients: dict[str, torch.Tensor], prefix: str) -> float:
    return float(torch.cat([g.flatten() for n, g in gradients.items() if n.startswith(prefix)]).norm())


def test_norms_are_those_of_the_gradients_before_clipping() -> None:
    """Of a detection run with accumulation, clipped hard; every step is measured, however rarely it is looked at."""
    t = tiny()
    m, seen, watch = module(t, clip_norm=1e-3), Gradients(), health(every_n_steps=10)
    trainer(seen, watch, accumulate_grad_batches=2, max_epochs=2).fit(m, Loader(batches(t, (2, 1), accumulate=2, losses=m.losses)))
    found = watch.findings()["gradient_health"]
    assert set(found["groups"]) == {"rows", "backbone"}
    for group, prefix in (("rows", "rows."), ("backbone", "hf.")):
        theirs = [norm(step, prefix) for step in seen.steps]
        assert watch.norms[group] == pytest.approx(theirs, rel=1e-5)
        assert found["groups"][group] == pytest.approx(
            {"steps": 2, "min": min(theirs), "median": statistics.median(theirs), "max": max(theirs), "share_outside": 0.0}, rel=1e-5
        )
    assert found["tasks"]["all"]["clipped_steps"] == 2


def test_tasks_that_take_turns_are_measured_apart_with_their_own_heads_only() -> None:
    t, m = made(DualLM)
    watch = health()
    run = fit(t, m, watch, max_steps=1)
    assert run.global_step == 1
    ref, _ = made(DualLM)
    by_hand(ref, windows(ref)[0], TERMS["tokens"]).backward()
    gradients = {n: p.grad for n, p in ref.backbone.named_parameters() if p.grad is not None}
    heads = {"tokens": "box_start", "boxes": "box_end"}
    assert set(watch.norms) == {f"{task}/{group}" for task, head in heads.items() for group in ("rows", "backbone", head)}
    for group, prefix in (("rows", "rows."), ("backbone", "hf."), ("box_start", "heads.box_start.")):
        assert watch.norms[f"tokens/{group}"] == pytest.approx([norm(gradients, prefix)], rel=1e-5)  # type: ignore[arg-type]
    assert watch.losses["tokens"] == pytest.approx([float(by_hand(ref, windows(ref)[0], TERMS["tokens"]))], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("heads.done.inner.weight", "done"), ("rows.rows_in", "rows"), ("hf.model.language_model.layers.0.mlp.up_proj.weight", "backbone"),
        ("hf.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight", "adapter"),
    ],
)  # fmt: skip
def test_groups_are_heads_and_parts_of_the_model(name: str, group: str) -> None:
    assert group_of(name) == group


class Steps:
    """Optimiser steps with chosen gradients (two heads with one weight each) and losses."""

    def __init__(self, watch: GradientHealth, *, clip: float | None = None) -> None:
        self.watch, self.step = watch, 0
        self.x, self.y = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        named = [("heads.x.w", self.x), ("heads.y.w", self.y)]
        self.loss = 0.0
        backbone = SimpleNamespace(named_parameters=lambda: named, modules=list)
        self.module: Any = SimpleNamespace(backbone=backbone, clip_norm=clip, step_loss=lambda: torch.tensor(self.loss))
        self.optimizer = torch.optim.SGD([self.x, self.y], lr=0.0)
        self.logged: list[tuple[int, dict[str, float]]] = []
        logger = SimpleNamespace(log_metrics=lambda values, step: self.logged.append((step, values)))
        self.trainer: Any = SimpleNamespace(loggers=[logger], global_step=0)
        watch.on_train_start(self.trainer, self.module)

    def run(self, x: float, y: float = 1.0, loss: float = 1.0) -> None:
        self.x.grad, self.y.grad, self.loss = torch.tensor([x]), torch.tensor([y]), loss
        self.watch.on_before_optimizer_step(self.trainer, self.module, self.optimizer)
        self.trainer.global_step += 1
        self.watch.on_train_batch_end(self.trainer, self.module, None, None, 0)


def test_it_logs_the_latest_norms_every_n_steps() -> None:
    steps = Steps(health(every_n_steps=3))
    for x in (1.0, 2.0, -3.0, 4.0):
        steps.run(x)
    assert steps.logged == [(2, {"grad_health/x": 3.0, "grad_health/y": 1.0})], "under the number of the step, counted from 0 as losses are"
    assert steps.watch.findings()["gradient_health"]["groups"]["x"]["max"] == 4.0


def test_a_norm_outside_the_range_is_counted_always_and_warned_about_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps(health(healthy=[0.5, 10.0], warn_every_n_steps=4))
    with caplog.at_level(logging.WARNING):
        for x in (1.0, 0.1, 20.0, 1.0, 20.0, 20.0, 20.0):
            steps.run(x)
    told = [r.getMessage() for r in caplog.records]
    assert [line.split(":")[0] for line in told] == ["step 1", "step 5"]
    assert "x (now 0.1) in 1" in told[0]
    assert "y" not in told[0].split("by steps")[1]
    assert steps.watch.findings()["gradient_health"]["groups"]["x"]["share_outside"] == pytest.approx(5 / 7)


def test_a_gradient_that_is_no_number_is_outside_and_the_record_stays_readable() -> None:
    steps = Steps(health())
    steps.run(float("nan"))
    found = steps.watch.findings()["gradient_health"]
    assert found["groups"]["x"] == {"steps": 1, "min": None, "median": None, "max": None, "share_outside": 1.0}
    json.dumps(found, allow_nan=False)


def test_clipped_steps_are_those_above_the_limit() -> None:
    steps = Steps(health(), clip=5.0)
    for x, y in ((3.0, 3.9), (3.0, 4.1), (0.0, 5.5)):
        steps.run(x, y)
    assert steps.watch.findings()["gradient_health"]["tasks"]["all"]["clipped_steps"] == 2


def test_a_spike_is_a_loss_far_above_the_median_of_those_before() -> None:
    """Ten losses must be known; the median of a falling loss follows it, and a spike does not hide the next one."""
    steps = Steps(health(every_n_steps=5, spike_factor=3.0, spike_window=10))
    losses = [9.0, *[1.0] * 9, 2.9, 3.1, 1.0, 50.0, 0.1, float("nan")]
    for loss in losses:
        steps.run(1.0, loss=loss)
    found = steps.watch.findings()["gradient_health"]["tasks"]["all"]
    assert found["spike_steps"] == [11, 13, 15]
    assert found["loss_spikes"] == 3


def test_the_state_goes_on_where_it_was() -> None:
    whole, first = Steps(health(every_n_steps=4)), Steps(health(every_n_steps=4))
    values = [(float(i), 2.0 * i, 1.0 if i % 7 else 9.0) for i in range(1, 30)]
    for v in values:
        whole.run(*v)
    for v in values[:14]:
        first.run(*v)
    second = Steps(health(every_n_steps=4))
    second.watch.load_state_dict(first.watch.state_dict())
    second.trainer.global_step = 14
    for v in values[14:]:
        second.run(*v)
    assert second.watch.findings() == whole.watch.findings()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be a whole number of at least 1, got 0"),
        ({"healthy": [1.0, 0.5]}, r"healthy must be \[low, high\]"),
        ({"healthy": [1.0]}, "healthy must be"),
        ({"spike_factor": 1.0}, "spike_factor must be above 1"),
        ({"spike_window": 3}, "spike_window must be a whole number of at least 10"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        health(**changes)
