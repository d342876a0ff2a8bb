"""From what ``conf/trainer`` names to the objects that Lightning's Trainer takes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.nn.parallel import DistributedDataParallel

from coordvlm.models.sharding import scatter_optimizer_state, whole
from coordvlm.modules.precision import BFloat16Weights
from coordvlm.utils import launch
from coordvlm.utils.devices import Devices, settle


def trainer_arguments(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ``lightning.Trainer`` for the devices, the strategy and the precision that ``trainer`` names."""
    devices = settle(trainer)
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # what is logged has been summed over ranks
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")  # nothing here writes into hidden states
    num = devices.num_processes if launch.is_rank() else 1  # ranks are started by ``utils.launch``, never by Lightning
    plugins: list[Any] = [LightningEnvironment()] if num > 1 else []
    precision: str | None = devices.precision
    if precision == "bf16-true":
        plugins, precision = [*plugins, BFloat16Weights()], None
    return {
        "accelerator": devices.accelerator,
        "devices": list(devices.indices[:num]) if devices.accelerator == "gpu" else num,
        "strategy": make_strategy(devices) if num > 1 else "auto",
        "precision": precision,
        "plugins": plugins,
    }


def make_strategy(devices: Devices) -> Strategy:
    """For several processes."""
    if devices.strategy == "fsdp":
        return ShardedStrategy(devices.num_processes)
    known = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its name before torch 2.13
    options: dict[str, Any] = {"gradient_as_bucket_view": True, sync: False}  # buffers are constants here: id tables
    return DDPStrategy(**options)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2. The module shards itself in ``configure_model``; checkpoints are whole and look like those of one process.

    Args:
        num_processes: of the mesh.
    """

    def __init__(self, num_processes: int) -> None:
        super().__init__(data_parallel_size=num_processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}  # weights live beside the trainer's file

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Whole on every rank, in one process's format."""
        return whole(getattr(optimizer, "_optimizer", optimizer).state_dict())  # type: ignore[no-any-return]

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        torch.cuda.empty_cache()
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(scatter_optimizer_state(optimizer, state))
