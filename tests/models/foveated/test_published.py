"""Foveated models of published parts, on tiny folders, and what is wrong with broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Dinov2Model, LlamaForCausalLM

from coordvlm import build
from coordvlm.models.foveated.loading import LoadedFoveated
from coordvlm.models.foveated.published import load_foveated
from coordvlm.utils.errors import ConfigError, ContractError
from tests.compose import compose
from tests.foveated_folders import MEAN, STD, write_language, write_parts, write_tower


def load(tower: Path | None, language: Path | None, **changes: Any) -> LoadedFoveated:
    paths = {"vision_path": None if tower is None else str(tower), "language_path": None if language is None else str(language)}
    settings = {"vision": "Nobody/tower", "vision_revision": "main", "language": "Nobody/words", "language_revision": "main"}
    return load_foveated(**{**settings, **paths, "frame_size": 56, "num_tokens": 128, **changes})


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    return write_tower(tmp_path / "tower"), write_language(tmp_path / "language")


def edit(path: Path, **changes: Any) -> None:
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("qwen2", True)])
def test_every_weight_comes_from_the_folders(tmp_path: Path, family: str, tied: bool) -> None:
    tower, language = write_tower(tmp_path / "t", seed=5), write_language(tmp_path / "l", family=family, tied=tied, seed=6)
    loaded = load(tower, language)
    saved_language = type(loaded.language).from_pretrained(language)
    for found, saved in ((loaded.tower, Dinov2Model.from_pretrained(tower)), (loaded.language, saved_language)):
        expected = saved.state_dict()
        assert found.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
        assert next(found.parameters()).dtype == torch.float32
    assert loaded.tied == tied
    assert (loaded.patch, loaded.image_mean, loaded.image_std) == (14, tuple(MEAN), tuple(STD))
    assert str(tower) in loaded.source
    assert str(language) in loaded.source


def test_one_step_on_parts_from_folders_changes_both(tmp_path: Path) -> None:
    """At another frame size than the tower's table of positions was made for."""
    cfg = compose(tmp_path / "run", "data=grid_symbols", "data.source.grid=4", "data.source.filled=[1,16]", "model=foveated_135m",
                  *write_parts(tmp_path / "parts"), "data.source.num_train=8")  # fmt: skip
    experiment = build.build_experiment(cfg)
    model, encoder = experiment.model.backbone, experiment.model.encoder
    batch = encoder.collate([encoder.encode(sample, epoch=0) for sample in experiment.data.first_samples()[:2]])
    losses, optimiser = experiment.module.losses, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = model(batch, losses.needs)
    loss = losses(outputs["coarse"][0], batch, losses.counts(batch)).total + losses(outputs["fine"][0], batch, losses.counts(batch)).total
    loss.backward()
    optimiser.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    for part in ("hf.visual.tower.encoder.layer.0", "hf.visual.merger.query", "hf.language.model.layers.1", "rows."):
        assert any(name.startswith(part) for name in changed), part
    assert isinstance(model.language, LlamaForCausalLM)


def test_patches_that_do_not_divide_the_frame_are_refused_before_weights_are_read(parts: tuple[Path, Path]) -> None:
    (parts[0] / "preprocessor_config.json").unlink()  # would be found missing later
    with pytest.raises(ConfigError, match=r"frame_size=60 is no multiple of the patch size .*14 px; .*: 56 and 70"):
        load(*parts, frame_size=60)


def test_parts_of_another_kind_are_refused(parts: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"is of type 'llama'; model.vision_path must be of type dinov2"):
        load(parts[1], parts[1])
    with pytest.raises(ContractError, match=r"is of type 'dinov2'; model.language_path must be of type llama or qwen2"):
        load(parts[0], parts[0])
    with pytest.raises(ConfigError, match=r"model.language_path=.*nothing is not a folder"):
        load(parts[0], tmp_path / "nothing")


def test_a_tokenizer_without_an_end_of_turn_is_refused(parts: tuple[Path, Path]) -> None:
    for path in parts[1].glob("*token*.json"):
        path.write_text(path.read_text().replace("<|im_end|>", "<|stop|>"))
    with pytest.raises(ContractError, match=r"does not know <\|im_end\|>, with which answers end"):
        load(*parts)


def test_a_tokenizer_with_more_ids_than_rows_is_refused(parts: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="do not fit"):
        load(parts[0], write_language(tmp_path / "short", padded_rows=-8))


def test_normalisation_is_read_and_checked(parts: tuple[Path, Path]) -> None:
    path = parts[0] / "preprocessor_config.json"
    edit(path, image_std=[0.2, 0.0, 0.2])
    with pytest.raises(ConfigError, match="image_mean and image_std"):
        load(*parts)
    edit(path, image_std=STD, rescale_factor=1.0)
    with pytest.raises(ContractError, match="rescale_factor"):
        load(*parts)


def test_sequences_longer_than_the_positions_are_refused(parts: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="max_length=600 is more than the 512 positions"):
        load(*parts, num_tokens=600)


def test_weights_that_are_missing_are_refused(parts: tuple[Path, Path]) -> None:
    edit(parts[0] / "config.json", num_hidden_layers=3)
    with pytest.raises(ContractError, match="lack"):
        load(*parts)
    (parts[0] / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="has no weights"):
        load(*parts)


def test_without_network_the_setting_for_a_folder_is_named(parts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"model.vision_path=/path/to/tower"):
        load(None, parts[1])
