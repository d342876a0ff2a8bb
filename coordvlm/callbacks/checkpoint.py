"""Checkpoint folders: ``checkpoints/<last|best>/`` with what was trained, what it means, and how to go on.

``trained.safetensors`` (canonical names), ``contract.json``, of a run with one ``adapter/`` (``models.adapter_files``), ``trainer.ckpt``
(optimiser, loops, RNG; loads with ``weights_only=True``). A folder is written beside its place and renamed last, so an
earlier checkpoint survives a full disk.
"""

from __future__ import annotations

import math
import random
import shutil
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from coordvlm.callbacks.trained_weights import adapter_of, save_trained
from coordvlm.callbacks.trained_weights import load_trained as load_trained
from coordvlm.contracts import Contract
from coordvlm.reports.tables import describe
from coordvlm.utils import collectives
from coordvlm.utils.errors import ConfigError, ContractError
from coordvlm.utils.files import atomic_folder

TRAINER = "trainer.ckpt"


class FolderCheckpoint(Callback):
    """Writes ``last`` after every validation and at the end, ``best`` when the monitored value improves.

    Ctrl-C, or ``SIGTERM`` of a scheduler: the first one lets the optimiser step in progress finish, writes ``last`` and stops; a second
    one stops at once. Several ranks agree on the step they stop after, whichever of them heard it; in validation they skip what is left
    and meet at its end. Only rank 0 writes; the others take part in what is collective.

    Args:
        folder: ``<run>/checkpoints``.
        contract: written into every checkpoint.
        monitor: a logged validation metric, higher is better.
    Raises:
        ConfigError: a metric or loss that is better the lower it is: its worst would be kept.
    """

    def __init__(self, folder: Path, contract: Contract, *, monitor: str) -> None:
        if describe(monitor.rpartition("/")[2])[1] < 0 or monitor.endswith("_loss"):
            raise ConfigError(
                f"callbacks.checkpoint.monitor={monitor!r} is better the lower it is, and the highest would be kept; a checkpoint of its "
                f"best needs callbacks.checkpoint.tasks.<name>={{monitor: {monitor}, mode: min}}"
            )
        self.folder, self.contract, self.monitor = Path(folder), contract, monitor
        self.best: float = -math.inf
        self.best_step = -1
        self._interrupted = False
        self._saved_step = -1
        self._previous: dict[int, Any] = {}
        self._inherited: dict[str, Path] = {}

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Before weights are shared out over processes: which base an adapter stands on."""
        if (adapter := adapter_of(pl_module)) is not None:
            _ = adapter.base

    def inherit(self, **folders: Path) -> None:
        """Checkpoints of the run that is resumed, by name; copied once this one has begun.

        Until it writes its own, it can be resumed itself; and a resume that is refused leaves no checkpoint that looks like progress.
        """
        self._inherited = folders

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._previous:
            # Lightning has put its own SIGTERM handler before ours since on_fit_start: that one broadcasts from within the handler, and a
            # rank in another collective at that moment waits for ever
            signal.signal(signal.SIGTERM, self._on_interrupt)
        for name, folder in self._inherited.items():
            if trainer.is_global_zero:
                with atomic_folder(self.folder / name) as place:
                    shutil.copytree(folder, place, dirs_exist_ok=True)
        self._inherited = {}

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.on_train_start(trainer, pl_module)  # nothing was left to train

    @property
    def interrupted(self) -> bool:
        return self._interrupted

    # -------------------------------------------------------------- interrupt
    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit":
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._previous = {}

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        at_step_end = batch.window is None or batch.window.index + 1 == batch.window.size
        if at_step_end and collectives.any_rank(self._interrupted):
            self._save(trainer, pl_module, "last")
            raise KeyboardInterrupt

    def on_validation_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any) -> None:
        if self._interrupted and not collectives.active():
            self._stop_in_validation(trainer, pl_module)
        elif self._interrupted:
            pl_module.skip_validation = True  # type: ignore[assignment]

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if collectives.any_rank(self._interrupted):  # before the module scores: some ranks have skipped images
            self._stop_in_validation(trainer, pl_module)

    def _stop_in_validation(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.global_step and trainer.state.fn == "fit":
            self._save(trainer, pl_module, "last")
        raise KeyboardInterrupt

    # ------------------------------------------------------------------- save
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ConfigError(f"callbacks.checkpoint.monitor={self.monitor!r} is not logged in validation; logged: {known}")
        number = -math.inf if math.isnan(float(value)) else float(value)  # undefined: worse than any number
        improved = number > self.best or self.best == -math.inf  # of values that are all undefined the last one counts
        if improved:
            self.best, self.best_step = number, trainer.global_step
        self._save(trainer, pl_module, "last")
        if improved:
            self._save(trainer, pl_module, "best")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._saved_step != trainer.global_step:
            self._save(trainer, pl_module, "last")

    def _save(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, name: str) -> None:
        self._saved_step = trainer.global_step
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.folder / name / TRAINER)  # collective, writes nothing here
            pl_module.trained_state()  # type: ignore[operator]
        else:
            with atomic_folder(self.folder / name) as place:
                trainer.save_checkpoint(place / TRAINER)
                state = pl_module.trained_state()  # type: ignore[operator]
                save_trained(place, state, self.contract, adapter_of(pl_module), step=trainer.global_step)
        collectives.any_rank(False)  # nobody reads a folder that is not there yet

    # ------------------------------------------------------------------ state
    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng"], *others = collectives.gather(_random_state())
        if others:
            checkpoint["rng_of_other_ranks"] = others

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        states = [checkpoint["rng"], *checkpoint.get("rng_of_other_ranks", ())]
        rank = collectives.rank()
        if rank < len(states):  # more ranks than before: the new ones keep the streams they were seeded with
            _set_random_state(states[rank])

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]


def _random_state() -> dict[str, Any]:
    """Of Python, NumPy and torch, as plain values that load without pickled code."""
    python = random.getstate()
    numpy = np.random.get_state(legacy=False)
    return {
        "python": [python[0], list(python[1]), python[2]],
        "numpy": {
            "key": numpy["state"]["key"].tolist(),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(rng: Mapping[str, Any]) -> None:
    version, state, gauss = rng["python"]
    random.setstate((version, tuple(state), gauss))
    numpy = rng["numpy"]
    np.random.set_state(("MT19937", np.asarray(numpy["key"], dtype=np.uint32), numpy["pos"], numpy["has_gauss"], numpy["gauss"]))
    torch.set_rng_state(rng["torch"])
    if rng["cuda"] and torch.cuda.is_available() and len(rng["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(rng["cuda"])


def steps_done(file: Path) -> int:
    """Optimiser steps behind a ``trainer.ckpt``.

    Raises:
        ContractError: missing, cut, or not what a trainer wrote.
    """
    try:
        return int(torch.load(file, weights_only=True, map_location="cpu", mmap=True)["global_step"])
    except Exception as error:  # torch has a class of its own for each kind of damage
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ContractError(f"{file}: cannot go on from it, it cannot be read: {reason}") from error
