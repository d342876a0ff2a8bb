"""A Qwen-VL of 1-3 M random parameters with a tokenizer made on the spot: nothing is downloaded.

The architecture is Hugging Face's own; only sizes and the initial values differ. Two initial values matter most when
training from scratch: smooth two-dimensional positions in the ViT's table, and smooth coordinate rows (``coord_rows``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from coordvlm.models.loading import LoadedModel

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
CORPUS = (
    "Describe all objects in the image with their bounding boxes. Possible classes: ",
    "Locate: the red circle left of the small green square above the large blue triangle",
    "user\nassistant\nsystem\n 0 1 2 3 4 5 6 7 8 9 , . : ; ( ) [ ] { } \" ' ",
    *(
        f"{colour} {shape}, "
        for colour in ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white", "black", "magenta")
        for shape in ("circle", "square", "triangle", "rectangle", "ellipse", "diamond", "cross", "star", "ring")
    ),
    *(
        f" {word}"
        for word in [
            "RBC",
            "WBC",
            "Platelets",
            "person",
            "car",
            "dog",
            "cat",
            "bicycle",
            "chair",
            "bottle",
            "left",
            "right",
            "above",
            "below",
            "small",
            "large",
        ]
    ),
)


def tiny_tokenizer(vocab_size: int, extra_words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen's special tokens and chat layout; any text round-trips. Deterministic."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    core.train_from_iterator([*CORPUS, *(f"{w} {w}" for w in extra_words)] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=list(SPECIAL)
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_qwen3vl(
    tokenizer: PreTrainedTokenizerFast,
    *,
    table_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    vision_width: int,
    vision_depth: int,
    vision_heads: int,
    vision_mlp: int,
    patch_size: int,
    merge_size: int,
    position_grid: int,
    deepstack: Sequence[int],
    tied: bool,
    position_amplitude: float,
    initial_std: float = 0.02,
    max_length: int = 2048,
    seed: int = 0,
) -> Qwen3VLForConditionalGeneration:
    """A small random Qwen3-VL in float32, on the CPU.

    Args:
        table_size: rows of the token table, padded beyond the tokenizer as the real ones are; new ids may lie inside or beyond.
        position_grid: the ViT's position table is ``position_grid ** 2`` rows.
        initial_std: of the random weights. 0.02 is the library's, for widths of thousands; 1 / sqrt(width) keeps the size of what passes.
        position_amplitude: scale of the smooth initial positions (0: the library's random ones).
        seed: of the random weights; the global generator is left as it was.
    """
    head_dim = hidden_size // num_heads
    half = head_dim // 2
    spatial = half * 5 // 16
    sections = [half - 2 * spatial, spatial, spatial]
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen3VLConfig(
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
            "head_dim": head_dim,
            "max_position_embeddings": max_length,
            "tie_word_embeddings": tied,
            "initializer_range": initial_std,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections, "mrope_interleaved": True},
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_width,
            "intermediate_size": vision_mlp,
            "num_heads": vision_heads,
            "patch_size": patch_size,
            "spatial_merge_size": merge_size,
            "out_hidden_size": hidden_size,
            "num_position_embeddings": position_grid**2,
            "deepstack_visual_indexes": list(deepstack),
            "initializer_range": initial_std,
        },
    )
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ids["<|im_end|>"], ids["<|endoftext|>"]
    if position_amplitude > 0:
        table: nn.Embedding = model.model.visual.pos_embed
        with torch.no_grad():
            table.weight.copy_(smooth_positions(position_grid, vision_width) * position_amplitude)
    return model


def load_tiny(
    *,
    tokenizer_size: int,
    padded_rows: int,
    extra_words: Sequence[str],
    image_mean: Sequence[float],
    image_std: Sequence[float],
    patch_size: int,
    merge_size: int,
    **sizes: Any,
) -> LoadedModel:
    """Tokenizer and model of the tiny default.

    Args:
        tokenizer_size: largest BPE vocabulary, special tokens included.
        padded_rows: table rows beyond the tokenizer, as the published tables have: the first new ids lie inside them.
        extra_words: words that should be short in tokens (class names).
        sizes: see ``tiny_qwen3vl``.
    """
    tokenizer = tiny_tokenizer(tokenizer_size, extra_words)
    hf = tiny_qwen3vl(tokenizer, table_size=len(tokenizer) + padded_rows, patch_size=patch_size, merge_size=merge_size, **sizes)
    return LoadedModel(hf, tokenizer, patch_size, merge_size, tuple(image_mean), tuple(image_std), source="tiny, random weights")


def smooth_positions(side: int, width: int) -> Tensor:
    """float32[side * side, width]: sines and cosines of row and column at geometric frequencies, amplitude 1."""
    num = math.ceil(width / 4)
    axis = torch.linspace(0, 1, side)
    waves = axis[:, None] * math.pi * 2 ** torch.linspace(-1, math.log2(side / 2), num)
    one = torch.cat((waves.sin(), waves.cos()), -1)
    rows, columns = one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)
    return torch.cat((rows, columns), -1).reshape(side * side, -1)[:, :width].contiguous()
