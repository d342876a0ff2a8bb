"""Sums over ranks. Every rank calls each of these at the same place, whatever its own counts are; with one process they do nothing.

Numbers that are known on the CPU travel through a gloo group of their own, so that a GPU is not waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_cpu_groups: dict[Any, Any] = {}


def active() -> bool:
    """Whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Of this process in its group; 0 without one."""
    return dist.get_rank() if active() else 0


def _cpu_group() -> Any:
    """A gloo group of all ranks; made when first asked for, which all ranks do together."""
    world = dist.group.WORLD
    if dist.get_backend() == "gloo":
        return world
    if world not in _cpu_groups:
        _cpu_groups.clear()
        _cpu_groups[world] = dist.new_group(backend="gloo")
    return _cpu_groups[world]


def sum_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers by name, the same names on every rank, summed."""
    if not active():
        return dict(counts)
    names = sorted(counts)
    total = torch.tensor([counts[name] for name in names], dtype=torch.long)
    dist.all_reduce(total, group=_cpu_group())
    return dict(zip(names, total.tolist(), strict=True))


def sum_tensors(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """0-dim tensors by name, the same names on every rank, summed in one collective on their device."""
    if not active():
        return dict(values)
    names = sorted(values)
    total = torch.stack([values[name].detach() for name in names])
    dist.all_reduce(total)
    return dict(zip(names, total.unbind(), strict=True))


def any_rank(flag: bool) -> bool:
    """Whether the flag is set anywhere."""
    return sum_counts({"flag": int(flag)})["flag"] > 0


def gather(value: T) -> list[T]:
    """Every rank's object, in rank order."""
    if not active():
        return [value]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value, group=_cpu_group())
    return parts
