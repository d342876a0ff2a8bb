"""Tiny random Qwen2-VL and Qwen2.5-VL beside the tiny Qwen3-VL of ``tiny``: same tokenizer, Hugging Face's own architectures.

Their towers have no table of positions, only rotary ones. Qwen2.5's attends within windows except in a few blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from coordvlm.models.loading import LoadedModel
from coordvlm.models.tiny import SPECIAL, tiny_tokenizer
from coordvlm.utils.errors import ConfigError


def tiny_qwen2vl(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, vision_width: int, vision_mlp: int, vision: dict[str, Any], **common: Any
) -> Qwen2VLForConditionalGeneration:
    """A small random Qwen2-VL in float32, on the CPU.

    Args:
        vision_mlp: a multiple of ``vision_width``: this family writes the tower's MLP width as a ratio.
        vision: ``depth, num_heads, patch_size, spatial_merge_size``. common: see ``_language``.
    """
    if vision_mlp % vision_width:
        raise ConfigError(f"Qwen2-VL needs vision_mlp to be a multiple of vision_width={vision_width}, got {vision_mlp}")
    tower = {**vision, "embed_dim": vision_width, "hidden_size": hidden_size, "mlp_ratio": vision_mlp // vision_width}
    return _build(Qwen2VLForConditionalGeneration, Qwen2VLConfig, tokenizer, tower, hidden_size=hidden_size, **common)


def tiny_qwen25vl(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    vision_width: int,
    vision_mlp: int,
    vision: dict[str, Any],
    window_size: int,
    full_attention_blocks: Sequence[int],
    **common: Any,
) -> Qwen2_5_VLForConditionalGeneration:
    """A small random Qwen2.5-VL in float32, on the CPU.

    Args:
        window_size: side in px of the windows that a block attends within; full_attention_blocks: the blocks that see the whole image.
        vision: ``depth, num_heads, patch_size, spatial_merge_size``. common: see ``_language``.
    """
    factor = vision["patch_size"] * vision["spatial_merge_size"]
    if window_size < factor or window_size % factor:
        raise ConfigError(f"Qwen2.5-VL needs window_size to be a multiple of patch_size x merge_size = {factor} px, got {window_size}")
    tower = {
        **vision,
        "hidden_size": vision_width,
        "out_hidden_size": hidden_size,
        "intermediate_size": vision_mlp,
        "window_size": window_size,
        "fullatt_block_indexes": list(full_attention_blocks),
    }
    return _build(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, tokenizer, tower, hidden_size=hidden_size, **common)


def _build(
    model_class: Any,
    config_class: Any,
    tokenizer: PreTrainedTokenizerFast,
    vision: dict[str, Any],
    *,
    table_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    tied: bool,
    max_length: int = 2048,
    seed: int = 0,
) -> Any:
    """The language model is Qwen2's in both families.

    Args:
        table_size: rows of the token table, padded beyond the tokenizer as the real ones are; new ids may lie inside or beyond.
        seed: of the random weights; the global generator is left as it was.
    """
    half = hidden_size // num_heads // 2
    spatial = half * 3 // 8
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = config_class(
        tie_word_embeddings=tied,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        text_config={
            "vocab_size": table_size,
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "max_position_embeddings": max_length,
            "tie_word_embeddings": tied,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [half - 2 * spatial, spatial, spatial]},
        },
        vision_config=vision,
    )
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ids["<|im_end|>"], ids["<|endoftext|>"]
    return model


def load_tiny_qwen2vl(**settings: Any) -> LoadedModel:
    """Tokenizer and model of ``model=tiny_qwen2vl``; settings as ``_load`` and ``tiny_qwen2vl`` take them."""
    return _load(tiny_qwen2vl, name="tiny_qwen2vl", **settings)


def load_tiny_qwen25vl(**settings: Any) -> LoadedModel:
    """Tokenizer and model of ``model=tiny_qwen25vl``; settings as ``_load`` and ``tiny_qwen25vl`` take them."""
    return _load(tiny_qwen25vl, name="tiny_qwen25vl", **settings)


def _load(
    make: Any,
    *,
    name: str,
    tokenizer_size: int,
    padded_rows: int,
    extra_words: Sequence[str],
    image_mean: Sequence[float],
    image_std: Sequence[float],
    patch_size: int,
    merge_size: int,
    vision_depth: int,
    vision_heads: int,
    **sizes: Any,
) -> LoadedModel:
    """See ``tiny.load_tiny``."""
    tokenizer = tiny_tokenizer(tokenizer_size, extra_words)
    vision = {"depth": vision_depth, "num_heads": vision_heads, "patch_size": patch_size, "spatial_merge_size": merge_size}
    hf = make(tokenizer, table_size=len(tokenizer) + padded_rows, vision=vision, **sizes)
    return LoadedModel(hf, tokenizer, patch_size, merge_size, tuple(image_mean), tuple(image_std), source=f"{name}, random weights")
