"""The Lightning trainer with our callbacks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeVar

from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from coordvlm.callbacks.checkpoint import FolderCheckpoint
from coordvlm.callbacks.csv_log import CSVLog
from coordvlm.callbacks.task_checkpoint import TaskCheckpoints
from coordvlm.contracts import Contract
from coordvlm.modules.strategies import trainer_arguments
from coordvlm.utils import logs

C = TypeVar("C")
#: Keywords that this module adds to nodes it instantiates; ``validate_targets`` must not miss them.
_OURS = ("callbacks", "logger", "default_root_dir", "enable_checkpointing", "use_distributed_sampler", "enable_model_summary")
SUPPLIED = {"trainer": set(_OURS)}


def build_trainer(cfg: DictConfig, run_dir: Path, contract: Contract, *, logged: bool = True) -> Trainer:
    """The Lightning trainer with our callbacks; checkpoints are folders of our own."""
    logs.adopt("lightning", "lightning.pytorch", "lightning.fabric")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 on torch 2.13
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # debug=overfit: one batch an epoch
    callbacks: list[Any] = []
    if logged:
        callbacks.append(_checkpoints(cfg.callbacks.checkpoint, run_dir / "checkpoints", contract))
    callbacks += [instantiate(node) for name, node in cfg.callbacks.items() if "_target_" in node]
    loggers = [instantiate(node) for node in cfg.logger.values()] if logged else []
    callbacks += [x for x in loggers if isinstance(x, Callback)]  # a tracker gets evaluations beside scalars
    trainer: Trainer = instantiate(
        cfg.trainer,
        **trainer_arguments(cfg.trainer),
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(run_dir),
        enable_checkpointing=False,
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
    return trainer


def _checkpoints(settings: DictConfig, folder: Path, contract: Contract) -> FolderCheckpoint:
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    if plain.get("tasks") or plain.get("patience") is not None:
        return TaskCheckpoints(folder, contract, monitor=plain["monitor"], tasks=plain["tasks"], patience=plain["patience"])
    return FolderCheckpoint(folder, contract, monitor=plain["monitor"])


def findings(trainer: Trainer) -> dict[str, Any]:
    """What callbacks found in training, for the record of the run."""
    return {key: value for x in trainer.callbacks if hasattr(x, "findings") for key, value in x.findings().items()}  # type: ignore[attr-defined]


def callback(trainer: Trainer, kind: type[C]) -> C:
    """The trainer's callback of a class."""
    return next(x for x in trainer.callbacks if isinstance(x, kind))  # type: ignore[attr-defined]


def csv_log(trainer: Trainer) -> CSVLog | None:
    """The trainer's CSV log, if it has one."""
    return next((x for x in trainer.loggers if isinstance(x, CSVLog)), None)
