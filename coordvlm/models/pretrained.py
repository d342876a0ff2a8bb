"""Published Qwen-VL weights, from a folder or from the hub, as a ``LoadedModel``."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from coordvlm.models import model_folder
from coordvlm.models.base_identity import matrices_of_files
from coordvlm.models.loading import FAMILIES, LoadedModel
from coordvlm.models.quantise import Quantisation
from coordvlm.utils.errors import ConfigError, ContractError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ATTENTION = ("sdpa", "flash_attention_2", "eager")
OLDEST_TRANSFORMERS = (5, 17)
#: What is fetched of a repository.
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
#: Seconds to wait for the hub before saying that it cannot be reached.
TIMEOUT = 5.0
_CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}

log = logging.getLogger(__name__)


def load_pretrained(
    *, hub_id: str, revision: str, path: str | None, family: str, dtype: str, attention: str, quantise: Quantisation | None = None
) -> LoadedModel:
    """A published model with its tokenizer and image settings.

    Args:
        hub_id, revision: repository on the hub, used when ``path`` is None; what is already in the local cache is not fetched again.
        path: folder with the files of such a repository.
        family: ``model_type`` that the weights must have: ``qwen2_vl``, ``qwen2_5_vl`` or ``qwen3_vl``.
        dtype: of the weights: ``float32`` or ``bfloat16``.
        attention: ``sdpa``, ``flash_attention_2`` or ``eager``.
        quantise: read the language model packed, the rest in bfloat16 whatever ``dtype`` says.
    Raises:
        ConfigError: nothing to load, a broken or incomplete folder, impossible settings.
        ContractError: weights of another family, or files that do not belong together.
    """
    for name, value, options in (("family", family, FAMILIES), ("dtype", dtype, DTYPES), ("attention", attention, ATTENTION)):
        if value not in options:
            raise ConfigError(f"model.load.{name} must be one of {', '.join(options)}, got {value!r}")
    _require_transformers()
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ConfigError("model.load.attention=flash_attention_2 needs the package flash-attn and a GPU; install it or use sdpa")

    def check(folder: Path) -> None:
        model_folder.read_config(folder, family)
        model_folder.check_weights(folder)

    folder = Path(path).expanduser() if path is not None else from_hub(hub_id, revision, check=check)
    config = model_folder.read_config(folder, family)
    files = model_folder.check_weights(folder)
    images = model_folder.read_image_settings(folder, config)
    tokenizer = model_folder.read_tokenizer(folder, config)
    hf = _read_weights(folder, family, DTYPES[dtype] if quantise is None else torch.bfloat16, attention, quantise)
    source = f"{hub_id}@{revision}" if path is None else str(folder)
    log.info("weights: %s, read from %s", source, folder)  # of the hub: the folder is named after the commit
    return LoadedModel(
        hf,
        tokenizer,
        images.patch,
        images.merge,
        images.mean,
        images.std,
        source=source,
        min_pixels=images.min_pixels,
        max_pixels=images.max_pixels,
        matrices=None if quantise is None else matrices_of_files(hf, files),
    )


def _require_transformers() -> None:
    found = tuple(int(x) for x in transformers.__version__.split(".")[:2])
    if found < OLDEST_TRANSFORMERS:
        oldest = ".".join(map(str, OLDEST_TRANSFORMERS))
        raise ConfigError(f"transformers {transformers.__version__} is too old for these models; install transformers>={oldest},<6")


def from_hub(hub_id: str, revision: str, *, check: Callable[[Path], object], setting: str = "model.path") -> Path:
    """Folder of a repository in the local cache, fetched when it is not there.

    Asks once with a short time limit before fetching, because a download without network retries for minutes.

    Args:
        check: raises where a cached folder is incomplete (it is fetched again) or, a ``ContractError``, holds something else (refused).
        setting: that would name a folder instead, for messages.
    """
    try:
        cached = Path(snapshot_download(hub_id, revision=revision, allow_patterns=FILES, local_files_only=True))
        check(cached)
    except ContractError:
        raise
    except Exception:  # not there, or cut short: fetched below
        pass
    else:
        return cached
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(hub_id, revision, setting, "HF_HUB_OFFLINE is set and it is not in the local cache")
    try:
        HfApi().model_info(hub_id, revision=revision, timeout=TIMEOUT)
    except GatedRepoError as error:
        raise _unavailable(hub_id, revision, setting, "access is restricted: accept its licence on the hub, then hf auth login") from error
    except RevisionNotFoundError as error:
        raise _unavailable(hub_id, revision, setting, f"it has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise _unavailable(hub_id, revision, setting, "there is no such repository, or it is private") from error
    except Exception as error:  # the client library's own errors differ between versions
        raise _unavailable(hub_id, revision, setting, f"{constants.ENDPOINT} cannot be reached") from error
    log.info("downloading %s@%s", hub_id, revision)
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=FILES))
    except Exception as error:
        raise _unavailable(hub_id, revision, setting, f"the download broke off ({type(error).__name__}: {error})") from error


def _unavailable(hub_id: str, revision: str, setting: str, why: str) -> ConfigError:
    local = hub_id.rpartition("/")[2]
    at = "" if revision == "main" else f" --revision {revision}"
    return ConfigError(
        f"{hub_id} is not available: {why}. Where there is network, run: hf download {hub_id}{at} --local-dir {local}; "
        f"then copy the folder here and add {setting}=/path/to/{local}"
    )


def _read_weights(folder: Path, family: str, dtype: torch.dtype, attention: str, quantise: Quantisation | None) -> Any:
    quantised = {} if quantise is None else quantise.arguments()
    hf = read_weights(getattr(transformers, _CLASSES[family]), folder, dtype=dtype, attn_implementation=attention, **quantised)
    check_tied(hf, folder)
    return hf


def read_weights(model_class: Any, folder: Path, **arguments: Any) -> Any:
    """The model with every parameter read from the folder; one that is absent would silently stay random.

    Args:
        arguments: further ones of ``from_pretrained``.
    Raises:
        ConfigError: files that cannot be loaded. ContractError: weights that are missing or of another shape.
    """
    try:
        hf, info = model_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **arguments,
        )
    except (OSError, RuntimeError, ValueError, ImportError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"the weights in {folder} cannot be loaded: {first}") from error
    for problem, keys in (("lack", info["missing_keys"]), ("differ in shape from config.json in", info["mismatched_keys"])):
        if keys:
            names = sorted(str(k[0] if isinstance(k, tuple) else k) for k in keys)
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ContractError(f"the weights in {folder} {problem} {shown}; such parameters would have stayed random")
    if unexpected := sorted(info["unexpected_keys"]):
        log.warning("%s: %d tensors are not part of the model and were left out, first %s", folder, len(unexpected), unexpected[0])
    return hf


def check_tied(hf: Any, folder: Path) -> None:
    """Refuse weights whose tables are shared where config.json says they are not, or the other way round."""
    shared = hf.lm_head.weight is hf.get_input_embeddings().weight
    if shared != bool(hf.config.tie_word_embeddings):
        raise ContractError(f"{folder}: config.json has tie_word_embeddings={hf.config.tie_word_embeddings}, but the weights say otherwise")
