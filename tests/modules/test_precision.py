"""Steps in every precision: what is computed in which type, and what the loss becomes."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from coordvlm.contracts import ModelOutput
from coordvlm.models.backbone import NEEDS
from coordvlm.modules.precision import BFloat16Weights, cast_weights
from tests.modules.test_coord_lm import Gradients, Loader, batches, module, trainer
from tests.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def options(precision: str) -> dict[str, Any]:
    return {"plugins": [BFloat16Weights()]} if precision == "bf16-true" else {"precision": precision}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_step_moves_what_trains_and_keeps_rows_and_losses_in_float32(precision: str, tied: bool) -> None:
    t = tiny(tied=tied)
    m, seen = module(t), Gradients()
    outputs: list[ModelOutput] = []
    t.backbone.register_forward_hook(lambda module, args, out: outputs.append(out))
    before = {n: p.detach().clone() for n, p in t.backbone.named_parameters()}
    run = trainer(seen, **options(precision))
    run.fit(m, Loader(batches(t, [8], losses=m.losses)))
    weights = torch.bfloat16 if precision == "bf16-true" else torch.float32
    for name, parameter in t.backbone.named_parameters():
        assert parameter.dtype == (torch.float32 if name.startswith("rows.") else weights), name
        assert seen.steps[0][name].dtype == parameter.dtype
    assert not any(torch.equal(p, before[n]) for n, p in t.backbone.named_parameters() if n.startswith("rows."))
    assert {getattr(outputs[0], need).dtype for need in NEEDS if getattr(outputs[0], need) is not None} == {torch.float32}
    assert run.callback_metrics["train_total_loss"].dtype == torch.float32
    state = run.optimizers[0].state
    rows = next(p for n, p in t.backbone.named_parameters() if n == "rows.rows_in")
    assert state[rows]["exp_avg"].dtype == torch.float32


def test_losses_agree_between_precisions() -> None:
    def loss(precision: str) -> float:
        t = tiny()
        m, run = module(t), trainer(**options(precision))
        run.fit(m, Loader(batches(t, [8], losses=m.losses)))
        return float(run.callback_metrics["train_total_loss"])

    exact = loss("32-true")
    for precision in ("bf16-mixed", "bf16-true"):
        assert loss(precision) == pytest.approx(exact, rel=0.01)
        assert loss(precision) != exact


def test_decoding_runs_in_bfloat16_weights() -> None:
    t = tiny()
    m, run = module(t), trainer(**options("bf16-true"))
    (found,) = run.validate(m, Loader(batches(t, (3, 5))), verbose=False)
    assert math.isfinite(found["val_total_loss"])
    assert sorted(m.val_metric._predictions) == list(range(8))


def test_only_parameters_are_cast_and_tied_ones_stay_tied() -> None:
    t = tiny()
    buffers = {n: (b.dtype, b.clone()) for n, b in t.backbone.hf.named_buffers()}
    assert any("inv_freq" in n for n in buffers)
    cast_weights(t.backbone.hf)
    assert t.backbone.hf.lm_head.weight is t.backbone.table.weight
    assert all(b.dtype == buffers[n][0] and torch.equal(b, buffers[n][1]) for n, b in t.backbone.hf.named_buffers())


def test_full_tuning_in_bfloat16_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    t, frozen = tiny(), tiny(freeze=("vision", "merger", "language"))
    cast_weights(t.backbone.hf)
    assert re.search(r"bf16-true trains [\d,]+ bfloat16 weights: updates smaller than about 1/256", caplog.text)
    caplog.clear()
    cast_weights(t.backbone.hf)
    cast_weights(frozen.backbone.hf)
    assert not caplog.text


def test_a_whole_model_asked_for_bfloat16_keeps_its_rows_in_float32() -> None:
    t = tiny()
    t.backbone.to(torch.bfloat16)
    assert t.backbone.hf.dtype == torch.bfloat16
    assert t.backbone.rows.rows_in.dtype == torch.float32
    assert t.backbone.pixel_norm.scale.dtype == torch.float32
    t.backbone.to(torch.float64)
    assert t.backbone.rows.rows_in.dtype == torch.float64
