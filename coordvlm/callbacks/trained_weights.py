"""What was trained, in a checkpoint folder and back: ``trained.safetensors``, ``contract.json`` and, of a run with one, ``adapter/``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coordvlm.contracts import Contract
from coordvlm.models.adapter_files import FOLDER, read_adapter, read_base, save_adapter
from coordvlm.models.adapters import Adapter, is_adapter
from coordvlm.models.base_identity import base_name
from coordvlm.models.sharding import like
from coordvlm.utils.errors import ContractError
from coordvlm.utils.files import atomic_write_json

TRAINED, CONTRACT = "trained.safetensors", "contract.json"


def adapter_of(module: Any) -> Adapter | None:
    """Of a LightningModule or a backbone."""
    return getattr(getattr(module, "backbone", module), "adapter", None)


def save_trained(place: Path, state: Mapping[str, Tensor], contract: Contract, adapter: Adapter | None, *, step: int) -> None:
    """Write into a folder that is not yet in its place.

    Args:
        state: name of a backbone's parameter -> value, of all that trains; an adapter's go to its own folder.
    """
    values = {name: value.cpu().contiguous() for name, value in state.items()}
    try:
        if adapter is not None:
            values = save_adapter(place, adapter, values)
        save_file(values, place / TRAINED, metadata={"step": str(step)})
    except SafetensorError as error:  # hides the disk's errors in its own class; they leave here like any other
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(place)) from error
        raise
    atomic_write_json(place / CONTRACT, contract.to_dict())


def load_trained(folder: Path, backbone: nn.Module, contract: Contract, *, warm: bool = False) -> Mapping[str, str]:
    """Load a checkpoint folder into a model built for ``contract``.

    An adapter is loaded onto the base it was trained on, or not at all; a base that had been started from another run's weights
    (``init=``) is started from them again.

    Args:
        warm: to train on from there: only what the tokens mean must be equal (``Contract.require_same_tokens``), a model with an adapter
            or heads may take the weights of one without, and whatever the checkpoint holds must be kept by the checkpoints to come.
    Raises:
        ContractError: another contract, another base, or weights of another model (names or shapes differ).
    """
    stored = Contract.load(folder / CONTRACT)
    (stored.require_same_tokens if warm else stored.require_equal)(contract, mine="the checkpoint", theirs="this run's config")
    state, adapter = _read(folder / TRAINED), adapter_of(backbone)
    adapted = read_adapter(folder, adapter)
    parameters = {base_name(name): p for name, p in backbone.named_parameters()}
    absent = {name for name, p in parameters.items() if p.requires_grad} - set(state) - set(adapted)
    if warm:  # heads start anew, on weights that were trained without
        absent = {name for name in absent if not name.startswith("heads.")}
    if warm and not adapted:  # the adapter starts anew, on weights that were trained whole
        absent = {name for name in absent if not is_adapter(name)}
    if adapter is not None and absent and not adapted and all(map(is_adapter, absent)):
        raise ContractError(f"{folder}: the checkpoint has no adapter ({FOLDER}/) and the configured model has one; set adapter=none")
    _refuse_misfits(folder / TRAINED, state | adapted, parameters, absent)
    foreign = [name for name in state if not parameters[name].requires_grad]
    if foreign and (adapted or (adapter is None) == warm):  # only a warm start under a new adapter is written down, see Adapter
        raise ContractError(
            f"{folder / TRAINED} holds {len(foreign)} tensors that this run freezes, first {foreign[0]}; its own checkpoints would not "
            "hold them. Let those parts train (model.freeze, adapter.merger)"
        )
    if adapter is not None and adapted:
        _settle_base(folder, backbone, contract, adapter)
    with torch.no_grad():
        for name, value in (state | adapted).items():
            parameters[name].copy_(like(value, parameters[name]))
    if adapter is not None and foreign:
        adapter.base_changed(str(folder.absolute()))
    return {}


def _settle_base(folder: Path, backbone: nn.Module, contract: Contract, adapter: Adapter) -> None:
    """The base that the adapter in ``folder`` belongs to, under it."""
    base, started_from = read_base(folder)
    if started_from is not None and adapter.started_from != started_from:
        if not Path(started_from).is_dir():
            raise ContractError(f"{folder}: its base was started from the weights in {started_from}, and they are not there any more")
        load_trained(Path(started_from), backbone, contract, warm=True)
    base.require(adapter.base, where=folder)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except Exception as error:  # safetensors raises its own classes for a cut file
        raise ContractError(f"{file}: cannot be read: {error}") from error


def _refuse_misfits(file: Path, state: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], absent: Iterable[str]) -> None:
    problems = [f"missing {n}" for n in sorted(absent)] + [f"unknown {n}" for n in sorted(set(state) - set(parameters))]
    problems += [
        f"{n}: checkpoint {tuple(v.shape)}, model {tuple(parameters[n].shape)}"
        for n, v in state.items()
        if n in parameters and v.shape != parameters[n].shape
    ]
    if problems:
        raise ContractError(f"{file} does not fit the configured model:\n  " + "\n  ".join(problems[:8]))
