"""Fully sharded data parallelism (FSDP2) for a ``Backbone``: who holds what, and how whole tensors come out of it and go in.

Every language layer and vision block is a unit; embedding table, head, norms, patch embedding and merger belong to the root, which stays
gathered from forward to backward because the forward reads those weights in several places. The new-token rows (a few MB, always
float32), and beside an adapter all that trains, are left whole on every rank; their gradients are averaged before the step
(``average_replicated``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(backbone: Any, mesh: DeviceMesh) -> None:
    """Shard over a one-dimensional mesh, in place. A second call changes nothing."""
    if isinstance(backbone, FSDPModule):
        return
    ignored = set(replicated(backbone))
    for unit in (*backbone.hf.model.language_model.layers, *backbone.hf.model.visual.blocks):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)
    fully_shard(backbone, mesh=mesh, reshard_after_forward=False, ignored_params=ignored)


def replicated(backbone: Any) -> list[nn.Parameter]:
    """Parameters that every rank holds whole."""
    trained = [] if backbone.adapter is None else [p for p in backbone.hf.parameters() if p.requires_grad]
    return [*backbone.rows.parameters(), *backbone.heads.parameters(), *trained]


def units(module: nn.Module) -> list[FSDPModule]:
    """The root and its units, in the same order on every rank; none when nothing is sharded."""
    return [m for m in module.modules() if isinstance(m, FSDPModule)]


def gather_weights(module: nn.Module) -> None:
    """Hold all weights whole until ``release_weights``: ranks that decode take different numbers of steps, so no step may be collective.

    The methods that decoding calls beside ``forward`` work between the two only. They are not registered with FSDP: ``forward`` calls them
    too, and an FSDP forward within its own module's forward gives the root's weights away at the end of the inner one (torch 2.13).
    """
    for unit in units(module):
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def release_weights(module: nn.Module) -> None:
    """Back to shards."""
    for index, unit in enumerate(units(module)):  # the root is the first
        unit.set_reshard_after_forward(index > 0, recurse=False)
        unit.reshard()


def whole(value: Any) -> Any:
    """The value with every sharded tensor in it gathered (all ranks must call this alike) and moved to the CPU."""
    if isinstance(value, DTensor):
        return value.full_tensor().detach().cpu()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item) for item in value)
    return value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, which every rank has, laid out as ``parameter``."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def scatter_optimizer_state(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """A whole ``state_dict`` of an optimiser, moments laid out as its parameters; joint optimisers are followed."""
    if "optimizers" in state:
        inner = zip(optimizer.optimizers, state["optimizers"], strict=True)
        return {**state, "optimizers": [scatter_optimizer_state(o, s) for o, s in inner]}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    laid = {
        index: {key: like(x, parameters[int(index)]) if isinstance(x, Tensor) else x for key, x in moments.items()}
        for index, moments in state["state"].items()
    }
    return {**state, "state": laid}


def average_replicated(parameters: Iterable[nn.Parameter]) -> None:
    """Mean of the gradients over ranks, for parameters that are whole on each of them, in one collective."""
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """``torch.nn.utils.clip_grad_norm_`` for sharded and whole parameters side by side; the norm before clipping, 0-dim float32."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    squares = {True: _squares(gradients, sharded=True), False: _squares(gradients, sharded=False)}
    dist.all_reduce(squares[True])
    norm = (squares[True] + squares[False]).sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in _local(gradients):
        gradient.mul_(scale.to(gradient.dtype))
    return norm


def _squares(gradients: list[Tensor], *, sharded: bool) -> Tensor:
    parts = list(_local([g for g in gradients if isinstance(g, DTensor) == sharded]))
    device = next(_local(gradients)).device
    wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in parts]
    return torch.stack([torch.zeros((), device=device), *(g.pow(2).sum() for g in wide)]).sum()


def _local(gradients: Iterable[Tensor]) -> Iterator[Tensor]:
    return (g.to_local() if isinstance(g, DTensor) else g for g in gradients)
