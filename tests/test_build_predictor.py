"""What a predictor does with the precision it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coordvlm.build.predictor import Predictor
from coordvlm.utils.errors import ConfigError
from tests.compose import compose


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_adapters_rows_and_heads_stay_float32_and_nothing_trains(tmp_path: Path, precision: str) -> None:
    """As in training and evaluation (``modules.precision``): a rounded adapter would answer otherwise than it was scored."""
    cfg = compose(tmp_path, "data=phrases", "adapter=lora", "adapter.merger=true")
    predictor = Predictor(cfg, checkpoint=None, budget=8, device="cpu", precision=precision)
    types = {name: p.dtype for name, p in predictor.model.backbone.named_parameters()}
    kept = {name for name in types if ".lora_" in name or "merger" in name or name.startswith(("rows.", "heads."))}
    assert any(".lora_" in name for name in kept)
    assert {types[name] for name in kept} == {torch.float32}
    weights = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {types[name] for name in types if name not in kept} == {weights}
    assert not any(p.requires_grad for p in predictor.model.backbone.parameters())


def test_a_model_without_adapter_is_cast_whole_and_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictor = Predictor(compose(tmp_path, "data=phrases"), checkpoint=None, budget=8, device="cpu", precision="bf16-true")
    assert {p.dtype for p in predictor.model.backbone.hf.parameters()} == {torch.bfloat16}
    assert "bf16-true trains" not in caplog.text


@pytest.mark.parametrize("loop", ["true", "false"])
def test_a_run_that_never_learnt_when_all_is_marked_cannot_count(tmp_path: Path, loop: str) -> None:
    cfg = compose(tmp_path, "data=dots", "sequence.mode=regression", f"decode.loop={loop}")
    with pytest.raises(ConfigError, match=r"sequence\.mode=regression: it never learnt whether all is marked.*sequence\.mode=mixed"):
        Predictor(cfg, checkpoint=tmp_path, budget=None, device="cpu", precision="32-true")
