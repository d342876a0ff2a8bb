"""Counting: whatever trains has a gradient."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordvlm.build import build_experiment
from tests.compose import compose
from tests.e2e.conftest import COUNTING


@pytest.mark.parametrize(
    ("loss", "tied", "adapter", "frozen"),
    [
        ("spatial", "true", "none", set()),
        ("spatial", "false", "none", {"hf.lm_head.weight", "rows.rows_out"}),
        ("three_stage_heads", "false", "lora", {"hf.lm_head.weight", "rows.rows_out"}),
        ("point_tokens", "false", "none", {"hf.lm_head.weight"}),
    ],
)
def test_whatever_trains_has_a_gradient(loss: str, tied: str, adapter: str, frozen: set[str], tmp_path: Path) -> None:
    """Several processes wait for the gradient of every parameter that trains; the output table of a model that writes nothing has none."""
    cfg = compose(tmp_path, *COUNTING, f"loss={loss}", f"adapter={adapter}", f"model.load.tied={tied}", "data.batch_size=2")
    experiment = build_experiment(cfg)
    backbone, encoder = experiment.model.backbone, experiment.model.encoder
    batch = encoder.collate([encoder.encode(s, epoch=0) for s in experiment.data.first_samples()])
    experiment.losses(backbone(batch, experiment.losses.needs), batch, experiment.losses.counts(batch)).total.backward()
    named = dict(backbone.named_parameters())
    assert [name for name, p in named.items() if p.requires_grad and p.grad is None] == []
    outer = {name for name, p in named.items() if not p.requires_grad and name in ("hf.lm_head.weight", "rows.rows_out", "rows.rows_in")}
    assert outer == frozen
    assert any(name.startswith("heads.") and p.requires_grad for name, p in named.items())
