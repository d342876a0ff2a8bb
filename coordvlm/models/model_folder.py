"""What is in a folder of published weights, checked before anything large is read: config, shards, image processor, tokenizer.

Read as JSON and by the tokenizer alone: the library's processors for these families cannot be constructed without torchvision.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from coordvlm.models.loading import FAMILIES, check_pixel_limits
from coordvlm.models.tokens import END_OF_TURN, IMAGE_PAD
from coordvlm.utils.errors import ConfigError, ContractError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ImageSettings:
    """What the folder's image processor does; ``min_pixels`` and ``max_pixels`` limit width x height."""

    patch: int
    merge: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_pixels: int | None
    max_pixels: int | None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or a ConfigError that names the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object, it holds a {type(data).__name__}")
    return data


def read_config(folder: Path, family: str) -> dict[str, Any]:
    """``config.json`` of a folder that must hold weights of ``family``."""
    if not folder.is_dir():
        raise ConfigError(f"model.path={folder} is not a folder")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is not a model folder: it has no config.json{_inside(folder, family)}")
    config = read_json(folder / "config.json")
    found = config.get("model_type")
    if found != family:
        known = f"a {FAMILIES[found].title} model ({found})" if found in FAMILIES else f"of type {found!r}"
        raise ContractError(f"{folder} is {known}, but the chosen model= is a {FAMILIES[family].title} ({family}); change one of them")
    return config


def _inside(folder: Path, family: str) -> str:
    """Where the model may be instead."""
    found = sorted(p for pattern in ("*/config.json", "snapshots/*/config.json") for p in folder.glob(pattern))
    if fitting := [p.parent for p in found if read_json(p).get("model_type") == family]:
        return f"; did you mean model.path={fitting[-1]}?"
    names = sorted(p.name for p in folder.iterdir())
    return f"; it holds {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}" if names else "; it is empty"


def check_weights(folder: Path) -> list[Path]:
    """The safetensors files of the folder; refuses one that is missing, cut short or a Git LFS pointer."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConfigError(f"{folder / INDEX} has no weight_map; download it again")
        names = sorted({str(v) for v in weight_map.values()})
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ConfigError(f"{folder} lacks {len(missing)} of {len(names)} weight files: {shown}; download it again")
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    else:
        other = sorted(p.name for p in folder.glob("*.bin"))
        hint = f"; only safetensors are read, not {other[0]}" if other else "; download the weights, not only the configuration"
        raise ConfigError(f"{folder} has no weights: neither {INDEX} nor {SINGLE}{hint}")
    files = [folder / n for n in names]
    for path in files:
        _check_safetensors(path)
    return files


def _check_safetensors(path: Path) -> None:
    """The header states how long the file is (8 bytes of header length, header, data)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(max(8, len(_LFS_POINTER)))
        if start.startswith(_LFS_POINTER):
            raise ConfigError(f"{path} is a Git LFS pointer, not the weights; run git lfs pull, or download with hf download")
        length = int.from_bytes(start[:8], "little")
        try:
            file.seek(8)
            header = json.loads(file.read(length)) if 2 <= length <= size - 8 else None
        except (UnicodeDecodeError, json.JSONDecodeError):
            header = None
    if not isinstance(header, dict):
        raise ConfigError(f"{path} is not a whole safetensors file; download it again")
    wanted = 8 + length + max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
    if size != wanted:
        raise ConfigError(f"{path} has {size} bytes where its header says {wanted}; download it again")


def read_image_settings(folder: Path, config: dict[str, Any]) -> ImageSettings:
    """The image processor's settings, in the spelling of any of the families.

    Limits are ``min_pixels`` and ``max_pixels``, or ``size`` with ``shortest_edge`` and ``longest_edge``, which are areas, too.
    """
    path, data = folder / "preprocessor_config.json", None
    if path.is_file():
        data = read_json(path)
    elif (folder / "processor_config.json").is_file():  # one file for the whole processor, as transformers 5 saves it
        path = folder / "processor_config.json"
        data = read_json(path).get("image_processor")
    if not isinstance(data, dict):
        raise ConfigError(f"{folder} has no preprocessor_config.json: image sizes and normalisation are unknown; download it too")
    vision = config.get("vision_config") or {}
    values = {}
    for name, of_model in (("patch_size", vision.get("patch_size")), ("merge_size", vision.get("spatial_merge_size"))):
        value = data.get(name)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{path}: {name} must be a whole number above zero, got {value!r}")
        if of_model is not None and of_model != value:
            raise ContractError(f"{path}: {name} is {value}, but the weights were trained with {of_model} (config.json)")
        values[name] = value
    mean, std = (tuple(float(x) for x in data.get(name) or ()) for name in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"{path}: image_mean and image_std must be three numbers each, std above zero, got {mean} and {std}")
    if abs(float(data.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        raise ContractError(f"{path}: rescale_factor must be 1/255, pixels in [0, 1] before normalisation, got {data['rescale_factor']}")
    size = data.get("size") or {}
    low = data["min_pixels"] if data.get("min_pixels") is not None else size.get("shortest_edge")
    high = data["max_pixels"] if data.get("max_pixels") is not None else size.get("longest_edge")
    check_pixel_limits(low, high, factor=values["patch_size"] * values["merge_size"], where=path.name, source=str(folder))
    return ImageSettings(values["patch_size"], values["merge_size"], mean, std, low, high)


def read_tokenizer(folder: Path, config: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template, checked against the model's configuration."""
    if not (folder / "tokenizer.json").is_file() and not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        raise ConfigError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt; download it again")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a broken file makes it raise
        raise ConfigError(f"the tokenizer in {folder} cannot be read: {error}") from error
    template = _template(folder) or tokenizer.chat_template
    if not isinstance(template, str) or not template.strip():
        raise ConfigError(
            f"the tokenizer in {folder} has no chat template: no chat_template.jinja or .json, none in tokenizer_config.json; "
            "download these files too"
        )
    tokenizer.chat_template = template
    vocabulary = tokenizer.get_vocab()
    if absent := [t for t in (END_OF_TURN, IMAGE_PAD) if t not in vocabulary]:
        raise ContractError(f"the tokenizer in {folder} does not know {' and '.join(absent)}; it is not a Qwen-VL tokenizer")
    image_id = vocabulary[IMAGE_PAD]
    if (wanted := config.get("image_token_id")) is not None and wanted != image_id:
        raise ContractError(f"{folder}: config.json has image_token_id={wanted}, the tokenizer gives {IMAGE_PAD} the id {image_id}")
    rows, top = int((config.get("text_config") or config)["vocab_size"]), max(vocabulary.values())
    if top >= rows:
        raise ContractError(f"{folder}: the tokenizer has ids up to {top}, but the weights' table has {rows} rows; they do not fit")
    return tokenizer  # type: ignore[no-any-return]


def _template(folder: Path) -> str | None:
    """The processor's chat template, which has precedence over the tokenizer's own as in the library."""
    jinja, in_json = folder / "chat_template.jinja", folder / "chat_template.json"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    return read_json(in_json).get("chat_template") if in_json.is_file() else None
