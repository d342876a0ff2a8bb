"""What ``trainer`` asks for, checked against this machine before anything is built: devices, strategy, precision.

``conf/trainer`` holds names (``accelerator: auto``, ``strategy: ddp``, ``precision: auto``); ``settle`` turns them into what will run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coordvlm.utils.errors import ConfigError
from coordvlm.utils.overrides import hint, nearest

ACCELERATORS = ("auto", "cpu", "gpu", "mps")
STRATEGIES = ("auto", "ddp", "fsdp")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true")
_PRECISION_ALIASES = {"32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Devices:
    """What a run uses.

    Args:
        accelerator: ``cpu``, ``gpu`` or ``mps``.
        indices: the GPUs; of the CPU one index per process.
        strategy: ``single``, ``ddp`` or ``fsdp``.
        precision: ``32-true``, ``bf16-mixed`` or ``bf16-true``.
    """

    accelerator: str
    indices: tuple[int, ...]
    strategy: str
    precision: str

    @property
    def num_processes(self) -> int:
        return len(self.indices)


def settle(trainer: Mapping[str, Any]) -> Devices:
    """Names -> what runs on this machine. Imports torch only where a GPU may be meant.

    ``strategy: auto`` is ddp as soon as there is more than one device; on one device every strategy is a single process.
    ``precision: auto`` is bf16-mixed on a GPU and 32-true elsewhere.

    Raises:
        ConfigError: an unknown name (with the choices), a device that this machine does not have (with how many it has), or more
            than one node.
    """
    accelerator = _choice("accelerator", trainer.get("accelerator", "auto"), ACCELERATORS, {"cuda": "gpu"})
    strategy = _choice("strategy", trainer.get("strategy", "auto"), STRATEGIES, {})
    precision = _choice("precision", trainer.get("precision", "auto"), PRECISIONS, _PRECISION_ALIASES)
    if trainer.get("num_nodes", 1) != 1:
        raise ConfigError(f"trainer.num_nodes={trainer['num_nodes']}: one machine only")
    gpus = _num_gpus() if accelerator in ("auto", "gpu") else 0
    if accelerator == "auto":
        accelerator = "gpu" if gpus else "cpu"
    if accelerator == "gpu" and not gpus:
        raise ConfigError("trainer.accelerator=gpu: torch sees no CUDA device here; use trainer=cpu or trainer.accelerator=cpu")
    if accelerator == "mps" and not _has_mps():
        raise ConfigError("trainer.accelerator=mps: torch sees no Apple GPU here; use trainer=cpu or trainer.accelerator=cpu")
    indices = _indices(trainer.get("devices", "auto"), accelerator, gpus)
    if precision == "auto":
        precision = "bf16-mixed" if accelerator == "gpu" else "32-true"
    return Devices(accelerator, indices, "single" if len(indices) == 1 else "ddp" if strategy == "auto" else strategy, precision)


def _choice(key: str, value: object, known: tuple[str, ...], aliases: Mapping[str, str]) -> str:
    name = aliases.get(str(value), str(value))
    if name not in known:
        raise ConfigError(f"trainer.{key}={value!r} is not known{hint(nearest(str(value), known))}; all: {', '.join(known)}")
    return name


def _indices(devices: object, accelerator: str, gpus: int) -> tuple[int, ...]:
    there = {"gpu": gpus, "cpu": usable_cpus(), "mps": 1}[accelerator]
    what = {"gpu": "CUDA device", "cpu": "CPU core", "mps": "Apple GPU"}[accelerator]
    plural = f"{there} {what}{'' if there == 1 else 's'}"
    wanted = _numbers(devices)
    if wanted in ("auto", -1):
        return tuple(range(there if accelerator == "gpu" else 1))
    if isinstance(wanted, int):
        if wanted < 1:
            raise ConfigError(f"trainer.devices={devices}: must be at least 1, or auto")
        if wanted > there:
            raise ConfigError(f"trainer.devices={devices}: there {'is' if there == 1 else 'are'} only {plural} here")
        return tuple(range(wanted))
    if not isinstance(wanted, list) or not wanted:
        raise ConfigError(f"trainer.devices={devices!r}: must be a number, a list of device numbers, or auto")
    if accelerator == "cpu":
        raise ConfigError(f"trainer.devices={devices}: CPU processes are counted, not chosen; write trainer.devices={len(wanted)}")
    if missing := [x for x in wanted if not 0 <= x < there]:
        raise ConfigError(f"trainer.devices={devices}: no device {missing[0]}, there {'is' if there == 1 else 'are'} {plural} here")
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"trainer.devices={devices}: a device is named twice")
    return tuple(wanted)


def _numbers(devices: object) -> int | list[int] | str | None:
    """A count, device numbers, ``auto``; None for anything else. ``"0,1"`` and ``"2"`` are read as a shell gives them."""
    if isinstance(devices, bool):
        return None
    if isinstance(devices, int) or devices == "auto":
        return devices  # type: ignore[return-value]
    if isinstance(devices, str):
        if not re.fullmatch(r"-?\d+(,-?\d+)*,?", text := devices.replace(" ", "").strip("[]")):
            return None
        numbers = [int(x) for x in text.split(",") if x]
        return numbers if "," in text or "[" in devices else numbers[0]
    if isinstance(devices, Iterable):
        chosen = list(devices)
        return chosen if all(isinstance(x, int) and not isinstance(x, bool) for x in chosen) else None
    return None


def usable_cpus() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()
