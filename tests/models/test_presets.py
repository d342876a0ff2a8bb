"""The shipped presets of published models, composed as a command composes them and loaded from a folder in their format."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from coordvlm.coords.resize import smart_resize
from coordvlm.models.checkpointing import parse_checkpointing
from coordvlm.models.loading import LoadedModel
from coordvlm.modules.optim import OptimSettings
from tests.compose import CONF, compose
from tests.folders import PRESETS, write_folder
from tests.published import published_config

COMMON = ("rows", "freeze", "gradient_checkpointing", "resize", "max_length", "max_source_pixels")


def test_every_preset_is_known_here() -> None:
    assert {p.stem for p in (CONF / "model").glob("qwen*.yaml")} == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_brings_optimiser_and_trainer_and_reads_its_folder(tmp_path: Path, preset: str) -> None:
    folder = write_folder(tmp_path / "a folder, with = and commas", PRESETS[preset])
    cfg = compose(tmp_path, f"model={preset}", f"model.path='{folder}'")
    assert (cfg.model.name, cfg.trainer.accelerator, cfg.trainer.precision) == (preset, "gpu", "bf16-mixed")
    optim: OptimSettings = instantiate(cfg.optim)
    assert (optim.muon_lr, optim.lr, optim.group_lr["rows"]) == (None, 1e-5, 1e-3)
    loaded: LoadedModel = instantiate(cfg.model.load)
    assert (loaded.family, loaded.source) == (PRESETS[preset], str(folder))
    assert parse_checkpointing(cfg.model.gradient_checkpointing) == "auto"
    size, hub = preset.partition("_")[2].upper(), cfg.model.load.hub_id
    family = {"qwen2vl": "Qwen2-VL", "qwen25vl": "Qwen2.5-VL", "qwen3vl": "Qwen3-VL"}[preset.partition("_")[0]]
    assert hub == f"Qwen/{family}-{size}-Instruct"
    text = (CONF / "model" / f"{preset}.yaml").read_text()
    assert f"sequence={loaded.native_sequence} coords={loaded.native_coords} " in text


@pytest.mark.parametrize("preset", PRESETS)
def test_the_largest_image_of_a_preset_fits_its_length(tmp_path: Path, preset: str) -> None:
    cfg = compose(tmp_path, f"model={preset}")
    vision = published_config(preset).vision_config
    factor = vision.patch_size * vision.spatial_merge_size
    height, width = smart_resize(6000, 8000, factor=factor, min_pixels=3136, max_pixels=cfg.model.resize.max_pixels)
    assert 1200 <= height * width // factor**2 <= 1280 < cfg.model.max_length / 2


def test_what_is_asked_for_replaces_what_a_preset_brings(tmp_path: Path) -> None:
    cfg = compose(tmp_path, "model=qwen3vl_4b", "optim=muon", "trainer=cpu", "optim.lr=0.5")
    assert (cfg.optim.muon_lr, cfg.optim.lr, cfg.trainer.accelerator) == (0.01, 0.5, "cpu")
    cfg = compose(tmp_path, "experiment=coco_ce_qwen3vl_4b", "model=qwen25vl_3b")
    assert (cfg.model.name, cfg.model.resize.max_pixels) == ("qwen25vl_3b", 802816)  # the experiment's
    assert compose(tmp_path).optim.muon_lr is not None  # tiny keeps its own


def test_all_models_have_the_same_keys(tmp_path: Path) -> None:
    """So that an override that is right for one is right for all."""
    for file in (CONF / "model").glob("*.yaml"):
        if "foveated" in file.stem:
            continue
        model = OmegaConf.to_container(compose(tmp_path, f"model={file.stem}").model)
        assert set(COMMON) <= set(model), file
        assert set(model["resize"]) == {"mode", "size", "min_pixels", "max_pixels"}
