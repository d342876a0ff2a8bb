"""QLoRA's device policy, and what a CUDA machine would be asked for; the packed weights themselves need one."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from coordvlm import build
from coordvlm.build.model import build_model
from coordvlm.models.adapters import Lora, adapted, merged_weight
from coordvlm.models.base_identity import identify
from coordvlm.models.loading import LoadedModel
from coordvlm.models.pretrained import load_pretrained
from coordvlm.models.quantise import QLora, Quantisation, settle_quantisation
from coordvlm.models.tiny import load_tiny
from coordvlm.modules.trains import what_trains
from coordvlm.utils.devices import Devices
from coordvlm.utils.errors import ConfigError
from tests.compose import compose
from tests.folders import write_folder
from tests.models.test_adapters import PLAIN, stir
from tests.tiny import random_sample, tiny_hf

CUDA = Devices("gpu", (2,), "single", "bf16-mixed")
SETTINGS = {**PLAIN, "bits": 4, "quant_type": "nf4", "double_quant": True, "without_cuda": "full_precision"}


def qlora(**changes: Any) -> QLora:
    return QLora(**{**SETTINGS, **changes})


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were installed."""
    monkeypatch.setattr("coordvlm.models.quantise.installed", lambda: True)


@pytest.mark.parametrize("accelerator", ["cpu", "mps"])
def test_elsewhere_than_on_cuda_one_warning_and_whole_weights(accelerator: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = settle_quantisation(qlora(), Devices(accelerator, (0,), "single", "32-true"), load_pretrained)
    assert found is None
    assert [r.message for r in caplog.records] == [
        f"adapter.bits=4 needs a CUDA device, and this run uses {accelerator}: the base stays in full precision"
    ]


def test_elsewhere_it_is_refused_when_asked_so() -> None:
    with pytest.raises(ConfigError, match=r"bits=8 needs a CUDA device, and this run uses cpu; adapter\.without_cuda=full_precision"):
        settle_quantisation(qlora(bits=8, without_cuda="refuse"), Devices("cpu", (0,), "single", "32-true"), load_pretrained)


def test_an_adapter_that_does_not_ask_gets_none() -> None:
    assert settle_quantisation(None, CUDA, load_pretrained) is None
    assert settle_quantisation(Lora(**PLAIN), CUDA, load_pretrained) is None


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordvlm.models.quantise.installed", lambda: False)
    with pytest.raises(ConfigError, match=r"needs the package bitsandbytes; install it with: pip install 'coordvlm\[qlora\]'"):
        settle_quantisation(qlora(), CUDA, load_pretrained)


@pytest.mark.usefixtures("bitsandbytes")
def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"this model is made by load_tiny, which cannot quantise"):
        settle_quantisation(qlora(), CUDA, load_tiny)
    with pytest.raises(ConfigError, match=r"does not go with trainer\.strategy=fsdp"):
        settle_quantisation(qlora(), Devices("gpu", (0, 1), "fsdp", "bf16-mixed"), load_pretrained)


@pytest.mark.usefixtures("bitsandbytes")
def test_each_rank_reads_onto_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle_quantisation(qlora(), CUDA, load_pretrained) == Quantisation(4, "nf4", True, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    found = settle_quantisation(qlora(bits=8), Devices("gpu", (4, 6), "ddp", "bf16-mixed"), load_pretrained)
    assert found == Quantisation(8, "nf4", True, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"bits": 3}, "adapter.bits must be one of 4, 8, got 3"), ({"quant_type": "int4"}, "adapter.quant_type must be one of nf4, fp4"),
     ({"without_cuda": "ignore"}, "adapter.without_cuda must be one of full_precision, refuse"), ({"r": 0}, "adapter.r must be")],
)
def test_wrong_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        qlora(**changes)


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("bits", [4, 8])
def test_what_a_cuda_machine_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """The library's reader is stopped short of packing; everything else is what a run does."""
    folder = write_folder(tmp_path / "model", "qwen2_vl")
    asked: dict[str, Any] = {}
    read = transformers.Qwen2VLForConditionalGeneration.from_pretrained

    def without_packing(path: Path, **arguments: Any) -> Any:
        asked.update(arguments)
        return read(path, **{k: v for k, v in arguments.items() if k not in ("quantization_config", "device_map")})

    monkeypatch.setattr(transformers.Qwen2VLForConditionalGeneration, "from_pretrained", without_packing)
    monkeypatch.setattr("coordvlm.build.model.settle", lambda _: CUDA)
    cfg = compose(tmp_path / "run", "adapter=qlora", f"adapter.bits={bits}", "model=qwen2vl_2b", f"model.path={folder}", "trainer=cpu")
    model = build_model(cfg)
    config = asked["quantization_config"]
    assert asked["device_map"] == {"": 2}
    assert asked["dtype"] == torch.bfloat16
    assert (config.load_in_4bit, config.load_in_8bit) == (bits == 4, bits == 8)
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant, config.bnb_4bit_compute_dtype) == ("nf4", True, torch.bfloat16)
    kept = [n for n, m in model.backbone.hf.named_modules() if isinstance(m, torch.nn.Linear) and ("visual" in n or n == "lm_head")]
    assert kept
    assert not [n for n in kept if transformers.quantizers.quantizers_utils.should_convert_module(n, config.llm_int8_skip_modules)]
    assert transformers.quantizers.quantizers_utils.should_convert_module(
        "model.language_model.layers.0.self_attn.q_proj", config.llm_int8_skip_modules
    )
    loaded: LoadedModel = model.loaded
    assert loaded.matrices == identify(model.backbone.hf, source="x").matrices  # of the files: the same base, packed or not
    assert {p.dtype for p in model.backbone.rows.parameters()} == {torch.float32}
    assert {p.dtype for p in model.backbone.adapter.parameters().values()} == {torch.float32}


@pytest.mark.parametrize(("bits", "dora"), [(4, False), (4, True), (8, False)])
def test_packed_weights_train_adapters_and_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, dora: bool) -> None:
    """With a real bitsandbytes, whose slow CPU kernels do for a tiny model."""
    pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    monkeypatch.setattr("tests.folders.tiny_hf", partial(tiny_hf, hidden=64))
    folder = write_folder(tmp_path / "model", "qwen3_vl", tied=False)
    monkeypatch.setattr("coordvlm.build.model.settle_quantisation", lambda *_: Quantisation(bits, "nf4", True, "cpu"))  # type: ignore[arg-type]
    options = ["adapter=qlora", f"adapter.bits={bits}", f"adapter.dora={dora}", "adapter.dropout=0", "adapter.targets=language"]
    cfg = compose(tmp_path / "run", *options, "model=qwen3vl_4b", f"model.path={folder}", "trainer=cpu")
    model = build_model(cfg)
    backbone = model.backbone
    packed = [n for n, p in backbone.named_parameters() if not p.is_floating_point()]
    assert len(packed) == 14
    assert all("language_model" in n for n in packed)
    monkeypatch.setattr("coordvlm.build.model.settle_quantisation", lambda *_: None)
    whole = build_model(cfg).backbone
    assert backbone.adapter.base.differences(whole.adapter.base) == []
    assert (backbone.adapter.base.quantised, whole.adapter.base.quantised) == (f"{bits} bit", "none")
    assert backbone.adapter.base.matrices is not None
    lines = {line["group"]: line for line in what_trains(backbone, build.instantiate(cfg.optim), precision="32-true")}
    plain = {line["group"]: line for line in what_trains(whole, build.instantiate(cfg.optim), precision="32-true")}
    assert {g: x["parameters"] for g, x in lines.items()} == {g: x["parameters"] for g, x in plain.items()}
    assert lines["language"]["types"] == [f"{bits} bit", "bfloat16"]
    stir(backbone)
    batch = model.encoder.collate([model.encoder.encode(random_sample(i, 2, (64, 48)), epoch=0) for i in range(2)])
    for every in (0, 1):
        backbone.set_checkpointing(every)
        backbone.zero_grad()
        out = backbone(batch, {"text_nll", "slot_lse"})
        (out.text_nll.mean() + out.slot_lse.mean()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad)
    for _, layer in adapted(backbone.hf)[:3]:
        x = torch.randn(5, layer.in_features).bfloat16()
        mine = layer(x.clone().requires_grad_()).detach().float()  # a gradient keeps bitsandbytes' CPU kernel from packing anew
        bias = layer.get_base_layer().bias
        merged = x.float() @ merged_weight(layer).T + (0 if bias is None else bias.float())
        torch.testing.assert_close(mine, merged.detach(), rtol=0, atol=0.02 * merged.abs().max().item())
