"""Folders that look like the published ones, with tiny random weights: what ``model.path`` of a real preset is pointed at in tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from coordvlm.models.tiny import SPECIAL, tiny_tokenizer
from tests.tiny import tiny_hf

#: Presets of conf/model that read a folder -> their family.
PRESETS = {
    "qwen2vl_2b": "qwen2_vl", "qwen2vl_7b": "qwen2_vl", "qwen25vl_3b": "qwen2_5_vl", "qwen25vl_7b": "qwen2_5_vl",
    "qwen3vl_2b": "qwen3_vl", "qwen3vl_4b": "qwen3_vl", "qwen3vl_8b": "qwen3_vl",
}  # fmt: skip
#: Where a folder keeps its chat template.
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


def write_folder(
    folder: Path,
    family: str,
    *,
    tied: bool = True,
    shards: bool = True,
    template_file: str = "chat_template.json",
    dtype: torch.dtype = torch.bfloat16,
    padded_rows: int = 40,
    seed: int = 0,
    min_pixels: int = 1024,
    max_pixels: int = 16384,
) -> Path:
    """A model folder as it is published: weights, config, tokenizer, chat template and preprocessor, each in its family's spelling.

    Args:
        padded_rows: table rows beyond the tokenizer's; negative: too few. shards: several files and an index.
        template_file: one of ``TEMPLATE_FILES``. dtype: of the saved weights.
        min_pixels, max_pixels: of the image processor; a token is 16 x 16 px.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(600)
    hf = tiny_hf(tokenizer, family, table_size=len(tokenizer) + padded_rows, tied=tied, seed=seed).to(dtype)
    hf.save_pretrained(folder, **({"max_shard_size": "40KB"} if shards else {}))
    if family != "qwen3_vl":
        _edit(folder / "config.json", _flat)
    template = SYSTEM_TEMPLATE if family != "qwen3_vl" else PLAIN_TEMPLATE
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    added = {
        str(tokenizer.convert_tokens_to_ids(t)): {
            "content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True
        }
        for t in SPECIAL
    }  # fmt: skip
    config: dict[str, Any] = {
        "add_prefix_space": False, "added_tokens_decoder": added, "additional_special_tokens": list(SPECIAL[1:]), "bos_token": None,
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 131072,
        "pad_token": "<|endoftext|>", "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    if template_file == "tokenizer_config.json":
        config["chat_template"] = template
    elif template_file == "chat_template.json":
        (folder / template_file).write_text(json.dumps({"chat_template": template}, indent=2))
    elif template_file == "chat_template.jinja":
        (folder / template_file).write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    shape = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor"}
    if family == "qwen3_vl":
        limits: dict[str, Any] = {"size": {"longest_edge": max_pixels, "shortest_edge": min_pixels}}
        shape |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "processor_class": "Qwen3VLProcessor"}
    else:
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        shape |= {**_CLIP, "processor_class": "Qwen2VLProcessor" if family == "qwen2_vl" else "Qwen2_5_VLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps({**limits, **shape}, indent=2))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; ``...`` removes one."""

    def change(data: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in {**data, **changes}.items() if value is not ...}

    _edit(path, change)


def _edit(path: Path, change: Any) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text())), indent=2))


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The config of Qwen2-VL and Qwen2.5-VL as published: text settings at the top level, rope in its old spelling."""
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    rope = text.pop("rope_parameters")
    for key in ("model_type", "layer_types", "pad_token_id"):
        text.pop(key)
    text.update(sliding_window=32768, max_window_layers=text["num_hidden_layers"], rope_theta=rope["rope_theta"])
    for key in ("model_type", "rope_parameters", "in_channels", "initializer_range"):
        vision.pop(key)
    vision |= {"in_chans": 3, "spatial_patch_size": vision["patch_size"]}
    rest = {key: value for key, value in config.items() if key not in ("text_config", "vision_config", "dtype", "transformers_version")}
    return {
        **text, **rest, "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}, "torch_dtype": config["dtype"],
        "transformers_version": "4.41.2", "vision_config": vision, "vision_token_id": config["image_token_id"] - 1,
    }  # fmt: skip


#: What the published templates do with turns of text and images, in words of our own. Only the older families add a system message.
_TURN = (
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "{%- set pictures.count = pictures.count + 1 %}"
    "{%- if add_vision_id %}{{- 'Picture ' ~ pictures.count ~ ': ' }}{%- endif %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}"
)
_SYSTEM = (
    "{%- if loop.first and message.role != 'system' %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
)
_FRAME = (
    "{{%- set pictures = namespace(count=0) %}}{{%- for message in messages %}}{turn}{{%- endfor %}}"
    "{{%- if add_generation_prompt %}}{{{{- '<|im_start|>assistant\n' }}}}{{%- endif %}}"
)
SYSTEM_TEMPLATE = _FRAME.format(turn=_SYSTEM + _TURN)
PLAIN_TEMPLATE = _FRAME.format(turn=_TURN)
