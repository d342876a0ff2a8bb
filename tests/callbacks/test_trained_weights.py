"""Checkpoints of runs with an adapter: what is in them, and that they come back on the right base, in another process too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from coordvlm.callbacks.trained_weights import load_trained, save_trained
from coordvlm.models.adapters import adapted, is_adapter
from coordvlm.utils.errors import ContractError
from tests.callbacks.test_checkpoint import CONTRACT
from tests.models.test_adapters import adapted_tiny, logits, stir
from tests.tiny import Tiny, tiny


def save(folder: Path, t: Tiny) -> Path:
    folder.mkdir()
    state = {n: p.detach() for n, p in t.backbone.named_parameters() if p.requires_grad}
    save_trained(folder, state, CONTRACT, t.backbone.adapter, step=3)
    return folder


def taught(t: Tiny, scale: float = 0.05) -> Tiny:
    """As if it had been trained: whatever trains has moved."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in t.backbone.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * scale)
    return t


CASES = {"lora": {"dora": False, "tied": True}, "dora untied": {"dora": True, "tied": False}}


def made(case: str) -> Tiny:
    """In any process the same."""
    return adapted_tiny({"dora": CASES[case]["dora"], "targets": "language", "merger": True}, tied=CASES[case]["tied"])


@pytest.mark.slow
def test_a_fresh_process_says_exactly_the_same(tmp_path: Path) -> None:
    expected = {}
    for number, case in enumerate(CASES):
        t = taught(made(case))
        save(tmp_path / str(number), t)
        expected[case] = logits(t)
    code = f"""
import torch
from pathlib import Path
from coordvlm.callbacks.trained_weights import load_trained
from tests.callbacks.test_trained_weights import CASES, CONTRACT, logits, made
found = {{}}
for number, case in enumerate(CASES):
    t = made(case)
    load_trained(Path({str(tmp_path)!r}) / str(number), t.backbone, CONTRACT)
    found[case] = logits(t)
torch.save(found, Path({str(tmp_path)!r}) / "found.pt")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    for case, value in expected.items():
        torch.testing.assert_close(found[case], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_holds_adapter_rows_and_what_else_trains_and_no_base_tensor(tmp_path: Path, case: str) -> None:
    t = made(case)
    folder = save(tmp_path / "c", t)
    names: dict[str, set[str]] = {}
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            names[str(file.relative_to(folder))] = set(opened.keys())
    trained = {n: p for n, p in t.backbone.named_parameters() if p.requires_grad}
    assert names["trained.safetensors"] == {n for n in trained if not is_adapter(n)}
    assert len(names["adapter/adapter_model.safetensors"]) == sum(map(is_adapter, trained))
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    assert size < 4 * sum(p.numel() for p in trained.values()) + 20_000


def test_an_adapter_of_another_base_is_refused_with_both_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", adapted_tiny())
    with pytest.raises(ContractError, match=r"c: this adapter was trained on another base: tiny@1 then, tiny@1 now \(other norms, biases"):
        load_trained(folder, adapted_tiny(seed=1).backbone, CONTRACT)


def test_with_and_without_an_adapter_do_not_mix(tmp_path: Path) -> None:
    with_, without = save(tmp_path / "with", adapted_tiny()), save(tmp_path / "without", tiny(freeze=["language", "vision", "merger"]))
    with pytest.raises(ContractError, match="the checkpoint has an adapter and the configured model has none"):
        load_trained(with_, tiny().backbone, CONTRACT)
    with pytest.raises(ContractError, match="the checkpoint has no adapter"):
        load_trained(without, adapted_tiny().backbone, CONTRACT)


def test_a_refused_checkpoint_changes_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", taught(adapted_tiny()))
    t = adapted_tiny(seed=1)
    before = {n: p.detach().clone() for n, p in t.backbone.named_parameters()}
    with pytest.raises(ContractError):
        load_trained(folder, t.backbone, CONTRACT)
    assert all(torch.equal(p, before[n]) for n, p in t.backbone.named_parameters())


# ------------------------------------------------------------------------------------------------------------------ warm starts
def started(whole: Path, changes: dict[str, Any] | None = None) -> Tiny:
    """An adapter on the weights that ``whole`` holds."""
    t = adapted_tiny(changes)
    load_trained(whole, t.backbone, CONTRACT, warm=True)
    return t


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A run that trained everything."""
    return save(tmp_path / "whole", taught(tiny()))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_starts_on_weights_that_were_trained_whole(whole: Path, dora: bool) -> None:
    trained = tiny()
    load_trained(whole, trained.backbone, CONTRACT)
    t = started(whole, {"dora": dora})
    torch.testing.assert_close(logits(t), logits(trained), rtol=0, atol=1e-5)  # DoRA's magnitudes are those of the new base
    if dora:
        for _, layer in adapted(t.backbone.hf):
            norms = layer.get_base_layer().weight.norm(dim=1)
            torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight, norms)


def test_its_checkpoint_brings_that_base_back(whole: Path, tmp_path: Path) -> None:
    t = taught(started(whole))
    folder = save(tmp_path / "c", t)
    again = adapted_tiny()
    load_trained(folder, again.backbone, CONTRACT)
    torch.testing.assert_close(logits(again), logits(t), rtol=0, atol=1e-6)
    onwards = adapted_tiny()  # a further run that starts from this one stands on the same base
    load_trained(folder, onwards.backbone, CONTRACT, warm=True)
    assert onwards.backbone.adapter.started_from == str(whole.absolute())
    torch.testing.assert_close(logits(onwards), logits(t), rtol=0, atol=1e-6)
    assert not [n for n in load_file(folder / "trained.safetensors") if n.startswith("hf.")]


def test_a_base_that_is_gone_or_changed_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "c", started(whole))
    shutil.rmtree(whole)
    with pytest.raises(ContractError, match=r"its base was started from the weights in .*whole, and they are not there any more"):
        load_trained(folder, adapted_tiny().backbone, CONTRACT)
    save(whole, taught(tiny(), scale=0.1))
    with pytest.raises(ContractError, match="trained on another base"):
        load_trained(folder, adapted_tiny().backbone, CONTRACT)


def test_a_warm_start_that_its_own_checkpoints_would_lose_is_refused(whole: Path) -> None:
    with pytest.raises(ContractError, match=r"holds \d+ tensors that this run freezes, first hf\.model\.visual"):
        load_trained(whole, tiny(freeze=["vision"]).backbone, CONTRACT, warm=True)


@pytest.mark.parametrize("warm", [False, True])
def test_a_merger_that_would_be_lost_is_refused(tmp_path: Path, warm: bool) -> None:
    folder = save(tmp_path / "c", adapted_tiny({"merger": True}))
    with pytest.raises(ContractError, match=r"tensors that this run freezes, first hf\.model\.visual\.(deepstack_)?merger"):
        load_trained(folder, adapted_tiny().backbone, CONTRACT, warm=warm)


def test_merger_and_rows_of_a_warm_start_are_kept(whole: Path, tmp_path: Path) -> None:
    """Neither counts towards the base's identity."""
    t = started(whole, {"merger": True})
    folder = save(tmp_path / "c", taught(t))
    again = adapted_tiny({"merger": True})
    load_trained(folder, again.backbone, CONTRACT)
    torch.testing.assert_close(logits(again), logits(t), rtol=0, atol=1e-6)


def test_other_settings_of_the_adapter_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", adapted_tiny())
    t = adapted_tiny({"alpha": 1.0})
    stir(t.backbone)
    for warm in (False, True):
        with pytest.raises(ContractError, match=r"alpha 8\.0 then, 1\.0 now"):
            load_trained(folder, t.backbone, CONTRACT, warm=warm)
