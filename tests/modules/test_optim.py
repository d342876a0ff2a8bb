from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from coordvlm.modules.optim import OptimSettings, build_optimizer, parameter_groups
from coordvlm.utils.errors import ConfigError
from tests.tiny import tiny


def settings(**changes: Any) -> OptimSettings:
    values = {
        "lr": 1e-3, "group_lr": {}, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "schedule": "cosine", "warmup": 0.1,
        "final_lr": 0.01, "clip_norm": 1.0, "muon_lr": None, "muon_momentum": 0.95, **changes,
    }  # fmt: skip
    return OptimSettings(**values)


def named_groups(s: OptimSettings, **model: Any) -> dict[str, set[str]]:
    """Group name -> names of its parameters."""
    backbone = tiny(**model).backbone
    by_id = {id(p): n for n, p in backbone.named_parameters()}
    return {g["name"]: {by_id[id(p)] for p in g["params"]} for g in parameter_groups(backbone.named_parameters(), s)}


MUON = {"muon_lr": 0.01}


@pytest.mark.parametrize("changes", [{}, MUON])
@pytest.mark.parametrize("model", [{}, {"tied": False}, {"freeze": ("vision",)}, {"freeze": ("language", "merger")}])
def test_every_trainable_parameter_is_in_exactly_one_group(changes: dict[str, Any], model: dict[str, Any]) -> None:
    backbone = tiny(**model).backbone
    groups = parameter_groups(backbone.named_parameters(), settings(**changes))
    got = [id(p) for g in groups for p in g["params"]]
    assert len(got) == len(set(got))
    assert set(got) == {id(p) for p in backbone.parameters() if p.requires_grad}


def test_groups_by_name() -> None:
    groups = named_groups(settings(), tied=False)
    assert set(groups) == {f"{g}{k}" for g in ("language", "vision", "merger") for k in ("", "/no_decay")} | {"rows/no_decay"}
    assert groups["rows/no_decay"] == {"rows.rows_in", "rows.rows_out"}
    assert "hf.model.visual.blocks.0.attn.qkv.weight" in groups["vision"]
    assert "hf.model.visual.merger.linear_fc1.weight" in groups["merger"]
    assert any("deepstack_merger_list" in n for n in groups["merger"])
    assert {"hf.lm_head.weight", "hf.model.language_model.embed_tokens.weight"} <= groups["language"]


def test_only_matrices_decay_and_neither_rows_nor_positions() -> None:
    backbone = tiny().backbone
    names = {id(p): n for n, p in backbone.named_parameters()}
    for g in parameter_groups(backbone.named_parameters(), settings()):
        for p in g["params"]:
            spared = p.ndim < 2 or names[id(p)].startswith("rows.") or "pos_embed" in names[id(p)]
            assert g["weight_decay"] == (0.0 if spared else 0.1), names[id(p)]


def test_learning_rates_of_groups() -> None:
    groups = parameter_groups(tiny().backbone.named_parameters(), settings(group_lr={"rows": 5e-3, "vision": 1e-4}))
    assert {g["name"]: g["lr"] for g in groups} == pytest.approx(
        {"rows/no_decay": 5e-3, "vision": 1e-4, "vision/no_decay": 1e-4, "merger": 1e-3, "merger/no_decay": 1e-3, "language": 1e-3,
         "language/no_decay": 1e-3}
    )  # fmt: skip


def test_muon_takes_hidden_matrices_only() -> None:
    groups = named_groups(settings(**MUON), tied=False)
    muon = set().union(*(v for k, v in groups.items() if k.endswith("/muon")))
    assert "hf.model.language_model.layers.0.self_attn.q_proj.weight" in muon
    assert "hf.model.visual.blocks.1.mlp.linear_fc1.weight" in muon
    others = ("rows.rows_in", "rows.rows_out", "hf.lm_head.weight", "hf.model.language_model.embed_tokens.weight",
              "hf.model.visual.pos_embed.weight", "hf.model.visual.patch_embed.proj.weight",
              "hf.model.language_model.norm.weight")  # fmt: skip
    assert not muon & set(others)
    assert {p for v in groups.values() for p in v} >= muon | set(others)


def test_muons_learning_rate_follows_the_group() -> None:
    groups = parameter_groups(tiny().backbone.named_parameters(), settings(**MUON, group_lr={"vision": 5e-4}))
    lr = {g["name"]: g["lr"] for g in groups}
    assert (lr["language/muon"], lr["vision/muon"], lr["vision/no_decay"]) == pytest.approx((0.01, 0.005, 5e-4))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule_at_its_corners(schedule: str) -> None:
    s = settings(schedule=schedule, warmup=10)
    assert s.factor(0, 110) == pytest.approx(1 / 11)
    assert s.factor(9, 110) == pytest.approx(10 / 11)
    assert s.factor(10, 110) == 1.0
    half = {"cosine": 0.01 + 0.99 / 2, "linear": 0.01 + 0.99 / 2, "constant": 1.0}[schedule]
    assert s.factor(60, 110) == pytest.approx(half)
    assert s.factor(110, 110) == s.factor(500, 110) == pytest.approx(1.0 if schedule == "constant" else 0.01)
    values = [s.factor(i, 110) for i in range(10, 111)]
    assert values == sorted(values, reverse=True)


def test_warm_up_is_a_share_below_one_and_steps_from_one() -> None:
    assert settings(warmup=0.1).factor(9, 100) < 1 == settings(warmup=0.1).factor(10, 100)
    assert settings(warmup=1).factor(0, 100) == 0.5
    assert settings(warmup=0).factor(0, 100) == 1.0


@pytest.mark.parametrize("changes", [{}, MUON])
def test_the_schedule_reaches_every_group(changes: dict[str, Any]) -> None:
    s = settings(warmup=4, group_lr={"rows": 4e-3}, **changes)
    optimizer, schedule = build_optimizer(tiny().backbone.named_parameters(), s, 20)
    full = {g["name"]: g["lr"] for g in parameter_groups(tiny().backbone.named_parameters(), s)}
    for step in range(6):
        assert {g["name"]: g["lr"] for g in optimizer.param_groups} == pytest.approx({n: v * s.factor(step, 20) for n, v in full.items()})
        optimizer.step()
        schedule.step()


class Toy(nn.Module):
    """A hidden matrix for Muon, a table and a bias for AdamW."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Parameter(torch.randn(5, 4, generator=generator))
        self.matrix = nn.Parameter(torch.randn(4, 3, generator=generator))
        self.bias = nn.Parameter(torch.zeros(3))

    def loss(self, step: int) -> torch.Tensor:
        return ((self.embed @ self.matrix + self.bias - step) ** 2).mean()


def train(toy: Toy, optimizer: torch.optim.Optimizer, schedule: Any, steps: range) -> None:
    for step in steps:
        calls = []

        def closure(step: int = step, calls: list[int] = calls) -> torch.Tensor:
            calls.append(step)
            optimizer.zero_grad()
            loss = toy.loss(step)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        assert math.isfinite(float(loss.detach()))
        assert len(calls) == 1
        schedule.step()


@pytest.mark.parametrize("changes", [{}, MUON])
def test_a_restored_optimiser_goes_on_exactly(changes: dict[str, Any]) -> None:
    s = settings(warmup=2, **changes)
    whole, first, second = Toy(), Toy(), Toy()
    train(whole, *build_optimizer(whole.named_parameters(), s, 10), range(6))
    optimizer, schedule = build_optimizer(first.named_parameters(), s, 10)
    train(first, optimizer, schedule, range(3))
    second.load_state_dict(first.state_dict())
    optimizer2, schedule2 = build_optimizer(second.named_parameters(), s, 10)
    optimizer2.load_state_dict(optimizer.state_dict())
    schedule2.load_state_dict(schedule.state_dict())
    train(second, optimizer2, schedule2, range(3, 6))
    for name, p in whole.named_parameters():
        assert torch.equal(p, dict(second.named_parameters())[name]), name
        assert not torch.equal(p, dict(Toy().named_parameters())[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"schedule": "cosinus"}, "optim.schedule must be one of constant, linear, cosine, got 'cosinus'"),
     ({"group_lr": {"row": 1e-3}}, "optim.group_lr knows language, vision, merger, adapter, rows, queries, heads, got row"),
     ({"lr": 0.0}, "optim.lr must be positive, got 0.0"),
     ({"lr": float("nan")}, "optim.lr must be positive, got nan"),
     ({"group_lr": {"rows": -1e-3}}, "optim.group_lr.rows must be positive, got -0.001"),
     ({"muon_lr": 0.0}, "optim.muon_lr must be positive or null, got 0.0"),
     ({"clip_norm": 0.0}, "optim.clip_norm must be positive, or null for no clipping, got 0.0"),
     ({"warmup": -1}, "optim needs warmup >= 0"),
     ({"final_lr": 2.0}, r"final_lr in \[0, 1\], got 0.1 and 2.0")],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_a_model_in_which_nothing_trains_is_refused() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing trains: every part is frozen"):
        build_optimizer(frozen.named_parameters(), settings(), 10)
