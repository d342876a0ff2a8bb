"""Folders that look like published DINOv2 and Llama repositories, with tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from coordvlm.models.tiny import tiny_tokenizer

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def write_tower(folder: Path, *, patch: int = 14, trained_at: int = 70, seed: int = 0) -> Path:
    """A DINOv2 with a mask token, whose table of positions is for frames of ``trained_at`` px."""
    config = Dinov2Config(
        image_size=trained_at, patch_size=patch, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2,
        use_mask_token=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_mean": MEAN, "image_std": STD, "rescale_factor": 0.00392156862745098, "image_processor_type": "BitImageProcessor",
    }))  # fmt: skip
    return folder


def write_language(folder: Path, *, family: str = "llama", tied: bool = True, padded_rows: int = 24, seed: int = 0) -> Path:
    """A language model with the tokenizer of the tiny model; negative ``padded_rows``: too few rows for it."""
    tokenizer = tiny_tokenizer(600)
    sizes = {
        "vocab_size": len(tokenizer) + padded_rows, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": tied,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**sizes)) if family == "llama" else Qwen2ForCausalLM(Qwen2Config(**sizes))
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_parts(folder: Path) -> list[str]:
    """Both, and the overrides of model=foveated_135m that read them on a CPU."""
    tower, language = write_tower(folder / "tower"), write_language(folder / "language")
    return [f"model.vision_path={tower}", f"model.language_path={language}", "model.frame_size=56", "trainer=cpu"]
