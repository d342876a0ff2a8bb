"""The adapter's folder: a standard one, read by peft and transformers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from coordvlm.models.adapter_files import read_adapter, read_base, save_adapter
from coordvlm.utils.errors import ContractError
from tests.models.test_adapters import adapted_tiny, stir
from tests.tiny import FAMILIES, Tiny, hf_inputs, tiny


def saved(folder: Path, t: Tiny) -> dict[str, torch.Tensor]:
    """Write the adapter; the rest of what trains."""
    state = {n: p.detach() for n, p in t.backbone.named_parameters() if p.requires_grad}
    return save_adapter(folder, t.backbone.adapter, state)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_and_transformers_load_it_on_the_plain_base(tmp_path: Path, family: str, dora: bool) -> None:
    """transformers 5.23 does not find DoRA's magnitudes in a folder of peft's; peft does."""
    t = adapted_tiny({"dora": dora, "targets": "language_and_vision", "rslora": True}, family=family, tied=False)
    stir(t.backbone)
    rest = saved(tmp_path, t)
    assert set(rest) == {"rows.rows_in", "rows.rows_out"}
    batch = t.batch()
    inputs = hf_inputs(batch, image_id=t.vocab.image_id, patch_norm=t.backbone.pixel_norm)
    with torch.no_grad():
        mine = t.backbone.to_hf()(**inputs).logits
        by_peft = PeftModel.from_pretrained(tiny(family=family, tied=False).backbone.to_hf(), tmp_path / "adapter").eval()
        torch.testing.assert_close(by_peft(**inputs).logits, mine, rtol=1e-5, atol=1e-5)
        if not dora:
            by_transformers = tiny(family=family, tied=False).backbone.to_hf()
            by_transformers.load_adapter(str(tmp_path / "adapter"))
            torch.testing.assert_close(by_transformers.eval()(**inputs).logits, mine, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_dora"], config["base_model_name_or_path"], config["revision"]) == (
        4, 8.0, dora, "tiny", "1"
    )  # fmt: skip


def test_what_was_written_comes_back_and_nothing_of_the_base_is_in_it(tmp_path: Path) -> None:
    t = adapted_tiny({"dora": True})
    stir(t.backbone)
    saved(tmp_path, t)
    found = read_adapter(tmp_path, t.backbone.adapter)
    mine = {f"hf.{n}": p for n, p in t.backbone.adapter.parameters().items()}
    assert found.keys() == mine.keys()
    assert all(torch.equal(found[n], mine[n]) for n in mine)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    assert all(".lora_" in key for key in load_file(file))
    assert file.stat().st_size < 1.5 * 4 * sum(p.numel() for p in mine.values())
    base, started_from = read_base(tmp_path)
    assert (base, started_from) == (t.backbone.adapter.base, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"alpha": 16.0}, r"alpha 8\.0 then, 16\.0 now"), ({"dora": True}, "dora False then, True now"), ({"r": 8}, "r 4 then, 8 now"),
     ({"rslora": True}, "rslora False then"), ({"targets": "language"}, "targets '.*' then")],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Another alpha loads without a complaint and says something else."""
    saved(tmp_path, adapted_tiny())
    with pytest.raises(ContractError, match=message):
        read_adapter(tmp_path, adapted_tiny(changes).backbone.adapter)


def test_another_dropout_is_no_contradiction(tmp_path: Path) -> None:
    saved(tmp_path, adapted_tiny())
    assert read_adapter(tmp_path, adapted_tiny({"dropout": 0.3}).backbone.adapter)


def test_an_adapter_for_a_model_without_one_is_refused(tmp_path: Path) -> None:
    assert read_adapter(tmp_path, None) == {}
    saved(tmp_path, adapted_tiny())
    with pytest.raises(ContractError, match=r"has an adapter and the configured model has none \(adapter=none\)"):
        read_adapter(tmp_path, None)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    t = adapted_tiny()
    saved(tmp_path, t)
    folder = tmp_path / "adapter"
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({**weights, "base_model.model.model.other.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(ContractError, match=r"1 tensors are for modules that have no adapter here, first model\.other\.lora_A"):
        read_adapter(tmp_path, t.backbone.adapter)
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ContractError, match=r"adapter_model\.safetensors: cannot be read"):
        read_adapter(tmp_path, t.backbone.adapter)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(ContractError, match=r"adapter_config\.json: must hold a JSON object"):
        read_adapter(tmp_path, t.backbone.adapter)
    (folder / "base.json").write_text("{}")
    with pytest.raises(ContractError, match=r"base\.json: cannot tell which base"):
        read_base(tmp_path)
