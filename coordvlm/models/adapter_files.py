"""An adapter within a checkpoint: a standard peft folder, and beside its two files the base it belongs to.

``adapter/adapter_config.json`` and ``adapter/adapter_model.safetensors`` load with ``peft.PeftModel.from_pretrained`` on the plain base;
``adapter/base.json`` is ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from coordvlm.models.adapters import Adapter
from coordvlm.models.base_identity import BaseIdentity
from coordvlm.utils.errors import ContractError
from coordvlm.utils.files import atomic_write_json

FOLDER, WEIGHTS, CONFIG, BASE = "adapter", "adapter_model.safetensors", "adapter_config.json", "base.json"
_PREFIX = "base_model.model."  # of names in a peft file
_OURS = "hf."  # of names of a backbone's parameters
#: What decides what the stored numbers mean, in peft's words -> in ours. Dropout may change on the way.
_MEANING = {
    "peft_type": "peft_type", "r": "r", "lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora", "target_modules": "targets",
}  # fmt: skip


def save_adapter(folder: Path, adapter: Adapter, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write the adapter's part of a checkpoint's tensors.

    Args:
        folder: of the checkpoint. state: name of a backbone's parameter -> value, on the CPU.
    Returns:
        The rest of ``state``: rows, heads, the merger if it trains.
    """
    place, rest = folder / FOLDER, dict(state)
    place.mkdir()
    values = {_PREFIX + key: rest.pop(_OURS + name) for key, name in adapter.peft_names().items()}
    save_file(values, place / WEIGHTS, metadata={"format": "pt"})
    adapter.config.save_pretrained(str(place))
    atomic_write_json(place / BASE, {"base": adapter.base.to_dict(), "started_from": adapter.started_from})
    return rest


def read_base(folder: Path) -> tuple[BaseIdentity, str | None]:
    """The base that the adapter of a checkpoint belongs to, and the checkpoint that base was started from, if any."""
    file = folder / FOLDER / BASE
    data = _read_json(file)
    if not isinstance(data.get("base"), dict) or "started_from" not in data:
        raise ContractError(f"{file}: cannot tell which base the adapter belongs to: its fields are {sorted(data)}")
    return BaseIdentity.from_dict(data["base"], file), data["started_from"]


def read_adapter(folder: Path, adapter: Adapter | None) -> dict[str, Tensor]:
    """Name of a backbone's parameter -> value, of the adapter in a checkpoint folder; empty where there is none.

    Raises:
        ContractError: an adapter where the model has none, one of other settings, a file that cannot be read.
    """
    place = folder / FOLDER
    if not place.is_dir():
        return {}
    if adapter is None:
        raise ContractError(f"{place}: the checkpoint has an adapter and the configured model has none (adapter=none)")
    stored, mine = _read_json(place / CONFIG), adapter.config.to_dict()
    if problems := [f"{ours} {stored.get(k)!r} then, {mine[k]!r} now" for k, ours in _MEANING.items() if stored.get(k) != mine[k]]:
        raise ContractError(f"{place / CONFIG}: this adapter has other settings: {'; '.join(problems)}")
    try:
        values = load_file(place / WEIGHTS)
    except Exception as error:  # safetensors raises its own classes for a cut file
        raise ContractError(f"{place / WEIGHTS}: cannot be read: {error}") from error
    names = adapter.peft_names()
    found = {key.removeprefix(_PREFIX): value for key, value in values.items()}
    if unknown := sorted(set(found) - set(names)):
        raise ContractError(f"{place / WEIGHTS}: {len(unknown)} tensors are for modules that have no adapter here, first {unknown[0]}")
    return {_OURS + names[key]: value for key, value in found.items()}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ContractError(f"{file}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ContractError(f"{file}: must hold a JSON object, it holds a {type(data).__name__}")
    return data
