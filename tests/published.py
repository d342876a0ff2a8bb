"""The published sizes, so that a model can be laid out without its weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

_ROPE2 = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
_ROPE3 = {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
_CLASSES: dict[str, tuple[Any, Any]] = {
    "qwen2vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen25vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}
#: preset -> width, MLP, layers, heads, key-value heads, table rows, tied
_TEXT = {
    "qwen2vl_2b": (1536, 8960, 28, 12, 2, 151_936, True),
    "qwen2vl_7b": (3584, 18944, 28, 28, 4, 152_064, False),
    "qwen25vl_3b": (2048, 11008, 36, 16, 2, 151_936, True),
    "qwen25vl_7b": (3584, 18944, 28, 28, 4, 152_064, False),
    "qwen3vl_2b": (2048, 6144, 28, 16, 8, 151_936, True),
    "qwen3vl_4b": (2560, 9728, 36, 32, 8, 151_936, True),
    "qwen3vl_8b": (4096, 12288, 36, 32, 8, 151_936, False),
}


def published_config(preset: str) -> Any:
    """The configuration of a preset of conf/model, as its repository has it."""
    family = preset.partition("_")[0]
    d, f, layers, heads, kv, rows, tied = _TEXT[preset]
    text = {
        "vocab_size": rows, "hidden_size": d, "intermediate_size": f, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "tie_word_embeddings": tied, "rope_parameters": _ROPE3 if family == "qwen3vl" else _ROPE2,
    }  # fmt: skip
    if family == "qwen3vl":
        large = preset == "qwen3vl_8b"
        text["head_dim"] = 128
        vision = {
            "depth": 27 if large else 24, "hidden_size": 1152 if large else 1024, "intermediate_size": 4304 if large else 4096,
            "num_heads": 16, "patch_size": 16, "out_hidden_size": d, "deepstack_visual_indexes": [8, 16, 24] if large else [5, 11, 17],
        }  # fmt: skip
    elif family == "qwen25vl":
        vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14, "out_hidden_size": d}
    else:
        vision = {"depth": 32, "embed_dim": 1280, "hidden_size": d, "num_heads": 16, "patch_size": 14, "mlp_ratio": 4}
    return _CLASSES[family][0](tie_word_embeddings=tied, text_config=text, vision_config=vision)


def published_model(preset: str) -> PreTrainedModel:
    """The model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return _CLASSES[preset.partition("_")[0]][1](published_config(preset))
