"""What adapters keep, against what autograd saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coordvlm.analysis.adapter_cost import AdapterBytes
from coordvlm.analysis.cost import Architecture, Parameters, plan
from coordvlm.models.adapters import Lora, add_adapter
from tests.analysis.test_cost import saved_bytes
from tests.tiny import tiny

PLAIN = {"r": 8, "alpha": 8.0, "dropout": 0.0, "rslora": False, "dora": False, "targets": "language", "merger": False}


@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_an_adapted_layer_keeps_what_is_counted(precision: str, dropout: float) -> None:
    t = tiny(hidden=64)
    t.backbone.hf.to(torch.bfloat16)
    add_adapter(t.backbone, Lora(**{**PLAIN, "dropout": dropout}), source="x", seed=0)
    language, (num, length) = t.backbone.hf.model.language_model, (2, 150)
    x = torch.randn(num, length, 64, dtype=torch.bfloat16, requires_grad=True) * 1
    rope = language.rotary_emb(x, torch.arange(length).expand(3, num, length))

    def run() -> Any:
        return language.layers[0](
            x, attention_mask=None, position_embeddings=rope, position_ids=None, past_key_values=None, use_cache=False
        )

    found = saved_bytes(run, [*t.backbone.hf.parameters(), *rope], "mixed" if "mixed" in precision else "bf16")
    base = Architecture.of(t.backbone.hf.config).layer_bytes("bf16", trains=False)
    extra = AdapterBytes.of(t.backbone, autocast="mixed" in precision).language
    if dropout:  # the CPU keeps a float32 mask where a GPU keeps bytes
        extra += 3 * sum(m.in_features for n, m in language.layers[0].named_modules() if hasattr(m, "lora_A"))
    assert found / (num * length) == pytest.approx(base + extra, rel=0.03)


def test_adapters_cost_what_they_are_and_no_more() -> None:
    t = tiny()
    whole = Parameters.of(t.backbone.named_parameters(), precision="32")
    adapter = add_adapter(t.backbone, Lora(**PLAIN), source="x", seed=0)
    found = Parameters.of(t.backbone.named_parameters(), precision="32")
    trained = sum(p.numel() for p in adapter.parameters().values()) + sum(p.numel() for p in t.backbone.rows.parameters())
    assert (found.gradients, found.optimiser) == (4 * trained, 8 * trained)
    assert found.weights == whole.weights + 4 * sum(p.numel() for p in adapter.parameters().values())
    assert not any((found.language_trains, found.vision_trains, found.merger_trains, found.table_trains))


def test_adapters_of_the_tower_count_as_a_tower_that_trains() -> None:
    t = tiny()
    settings = {"precision": "32-true", "checkpointing": 0, "decode_batch": 1, "max_new_tokens": 4, "muon": False, "available": None}
    assert AdapterBytes.of(t.backbone, autocast=False) == AdapterBytes()
    add_adapter(t.backbone, Lora(**{**PLAIN, "targets": "language_and_vision", "dora": True}), source="x", seed=0)
    bytes_ = AdapterBytes.of(t.backbone, autocast=False)
    assert bytes_.vision > 0
    assert bytes_.language_copies == 0 < AdapterBytes.of(t.backbone, autocast=True).language_copies
    found = plan(t.backbone, t.batch(), **settings)
    assert found.estimate.activations["vision"] > 0
