"""Published weights for a foveated model: a DINOv2 and a causal language model, each from a folder or from the hub.

Everything that can be told from JSON and the tokenizer is checked before weights are read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from coordvlm.models import model_folder
from coordvlm.models.foveated.loading import LoadedFoveated, check_patch
from coordvlm.models.pretrained import check_tied, from_hub, read_weights
from coordvlm.models.tokens import END_OF_TURN
from coordvlm.utils.errors import ConfigError, ContractError

#: ``model_type`` of a config -> its class in transformers. Language models have ``.model.layers`` and one table for input.
TOWERS = {"dinov2": "Dinov2Model"}
LANGUAGES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
VISION_PATH, LANGUAGE_PATH = "model.vision_path", "model.language_path"

log = logging.getLogger(__name__)


def load_foveated(
    *, vision: str, vision_revision: str, vision_path: str | None, language: str, language_revision: str, language_path: str | None,
    frame_size: int, num_tokens: int,
) -> LoadedFoveated:
    """Both parts, untouched, in float32.

    Args:
        vision, language: repositories on the hub, used where the path is None. *_revision: of them.
        vision_path, language_path: folders with the files of such repositories.
        frame_size: S, a multiple of the patch.
        num_tokens: the longest sequence, at most what the language model has positions for.
    Raises:
        ConfigError: nothing to load, a broken or incomplete folder, settings that do not fit the model.
        ContractError: another kind of model, or files that do not belong together.
    """
    tower_folder = _folder(vision, vision_revision, vision_path, VISION_PATH, TOWERS)
    text_folder = _folder(language, language_revision, language_path, LANGUAGE_PATH, LANGUAGES)
    tower_config, text_config = (model_folder.read_json(f / "config.json") for f in (tower_folder, text_folder))
    _check_frame(tower_folder, tower_config, frame_size)
    mean, std = read_normalisation(tower_folder)
    tokenizer = _read_tokenizer(text_folder, text_config)
    positions = int(text_config.get("max_position_embeddings") or num_tokens)
    if num_tokens > positions:
        raise ConfigError(f"model.max_length={num_tokens} is more than the {positions} positions of the language model in {text_folder}")
    tower = read_weights(getattr(transformers, TOWERS[tower_config["model_type"]]), tower_folder, dtype=torch.float32)
    text_class = getattr(transformers, LANGUAGES[text_config["model_type"]])
    text = read_weights(text_class, text_folder, dtype=torch.float32, attn_implementation="sdpa")
    check_tied(text, text_folder)
    pairs = ((vision, vision_revision, vision_path, tower_folder), (language, language_revision, language_path, text_folder))
    names = [f"{hub_id}@{revision}" if path is None else str(path) for hub_id, revision, path, _ in pairs]
    for name, (*_, folder) in zip(names, pairs, strict=True):
        log.info("weights: %s, read from %s", name, folder)  # of the hub: the folder is named after the commit
    return LoadedFoveated(tower, text, tokenizer, mean, std, source=" + ".join(names))


def _folder(hub_id: str, revision: str, path: str | None, setting: str, types: dict[str, str]) -> Path:
    """A folder with a whole model of one of the types."""

    def check(folder: Path) -> None:
        _check_type(folder, setting, types)
        model_folder.check_weights(folder)

    if path is None:
        return from_hub(hub_id, revision, check=check, setting=setting)
    folder = Path(path).expanduser()
    check(folder)
    return folder


def _check_type(folder: Path, setting: str, types: dict[str, str]) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{setting}={folder} is not a folder")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{setting}={folder} is not a model folder: it has no config.json")
    found = model_folder.read_json(folder / "config.json").get("model_type")
    if found not in types:
        raise ContractError(f"{folder} is of type {found!r}; {setting} must be of type {' or '.join(types)}")


def _check_frame(folder: Path, config: dict[str, Any], frame_size: int) -> None:
    patch = config.get("patch_size")
    if not isinstance(patch, int) or patch < 1:
        raise ConfigError(f"{folder / 'config.json'}: patch_size must be a whole number above zero, got {patch!r}")
    check_patch(frame_size, patch, str(folder))


def read_normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of pixels in [0, 1], from ``preprocessor_config.json``."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} has no preprocessor_config.json: normalisation is unknown; download it too")
    data = model_folder.read_json(path)
    mean, std = (tuple(float(x) for x in data.get(name) or ()) for name in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"{path}: image_mean and image_std must be three numbers each, std above zero, got {mean} and {std}")
    if abs(float(data.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        raise ContractError(f"{path}: rescale_factor must be 1/255, pixels in [0, 1] before normalisation, got {data['rescale_factor']}")
    return mean, std


def _read_tokenizer(folder: Path, config: dict[str, Any]) -> PreTrainedTokenizerBase:
    if not (folder / "tokenizer.json").is_file() and not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        raise ConfigError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt; download it again")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a broken file makes it raise
        raise ConfigError(f"the tokenizer in {folder} cannot be read: {error}") from error
    vocabulary = tokenizer.get_vocab()
    if END_OF_TURN not in vocabulary:
        raise ContractError(
            f"the tokenizer in {folder} does not know {END_OF_TURN}, with which answers end; use a model tuned to chat with it"
        )
    rows, top = int(config["vocab_size"]), max(vocabulary.values())
    if top >= rows:
        raise ContractError(f"{folder}: the tokenizer has ids up to {top}, but the weights' table has {rows} rows; they do not fit")
    return tokenizer  # type: ignore[no-any-return]
