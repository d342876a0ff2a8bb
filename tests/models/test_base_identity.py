"""An adapter knows its base: equal weights in any type are the same base, others are not."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch

from coordvlm.models.base_identity import BaseIdentity, identify, matrices_of_files
from coordvlm.models.model_folder import check_weights
from coordvlm.models.pretrained import load_pretrained
from coordvlm.utils.errors import ContractError
from tests.folders import write_folder
from tests.models.test_adapters import adapted_tiny, stir
from tests.tiny import FAMILIES, tiny


def of(**settings: object) -> BaseIdentity:
    return identify(tiny(**settings).backbone.hf, source="x")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_weights_are_the_same_base_in_any_type_and_under_any_adapter(tmp_path: Path, family: str) -> None:
    """Published weights are bfloat16; here they are read from such a folder."""
    folder = write_folder(tmp_path, family)
    load = {"hub_id": "a/b", "revision": "main", "path": str(folder), "family": family, "attention": "sdpa"}
    hf = load_pretrained(**load, dtype="float32").hf
    whole = identify(hf, source="x")
    assert whole.quantised == "none"
    assert identify(load_pretrained(**load, dtype="bfloat16").hf, source="x") == whole
    assert matrices_of_files(hf, check_weights(folder)) == whole.matrices  # what a quantised one is compared by


def test_adapters_rows_and_merger_do_not_count() -> None:
    plain = of()
    t = adapted_tiny({"targets": "language_and_vision", "merger": True})
    stir(t.backbone)
    with torch.no_grad():
        for name, p in t.backbone.named_parameters():
            if "merger" in name or "rows" in name:
                p.add_(1.0)
    assert identify(t.backbone.hf, source="x") == plain


@pytest.mark.parametrize("name", ["q_proj", "down_proj", "visual.blocks.1.mlp", "embed_tokens", "language_model.norm"])
def test_a_change_anywhere_makes_another_base(name: str) -> None:
    """Above all a base that another adapter was merged into: only some matrices differ."""
    t = tiny()
    before = identify(t.backbone.hf, source="before")
    chosen = [p for n, p in t.backbone.hf.named_parameters() if name in n and n.endswith("weight")]
    with torch.no_grad():
        chosen[-1].mul_(1.1)
    after = identify(t.backbone.hf, source="after")
    kind = "norms, biases or embeddings" if "embed" in name or name.endswith(".norm") else "weights"
    with pytest.raises(ContractError, match=rf"here: this adapter was trained on another base: before then, after now \(other {kind}\)"):
        before.require(after, where="here")


def test_other_sizes_are_named() -> None:
    with pytest.raises(ContractError, match=r"text\.hidden_size 32 and 64"):
        of().require(of(hidden=64), where="here")
    with pytest.raises(ContractError, match="family qwen3_vl and qwen2_vl"):
        of().require(of(family="qwen2_vl"), where="here")


def test_another_source_of_equal_weights_is_no_contradiction() -> None:
    one = of()
    one.require(dataclasses.replace(one, source="elsewhere"), where="here")


def test_another_quantisation_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    one = of()
    with caplog.at_level(logging.WARNING):
        dataclasses.replace(one, quantised="4 bit").require(one, where="here")
    assert "trained on a base with quantisation 4 bit and stands on one with none now" in caplog.text
    other = dataclasses.replace(one, quantised="4 bit", matrices=None)
    other.require(one, where="here")  # unknown is not different


def test_a_record_of_something_else_is_refused() -> None:
    assert BaseIdentity.from_dict(of().to_dict(), "x") == of()
    with pytest.raises(ContractError, match=r"base\.json: cannot tell which base"):
        BaseIdentity.from_dict({"source": "x"}, "base.json")
