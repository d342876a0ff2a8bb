"""One LightningDataModule for every source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray

from coordvlm.contracts import CountFn, Encoder, Sample
from coordvlm.data.augment import Augmented
from coordvlm.data.curriculum import Curriculum
from coordvlm.data.loader import Collate, EncodedSplit, EpochBatches, EvalLoader, WindowedLoader
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.source import DataSource
from coordvlm.utils.errors import ConfigError

#: The validation subset is the same for every run of a data set, whatever its seed: checkpoints are chosen on equal images.
_SUBSET_SEED = 0


class CoordDataModule(lightning.LightningDataModule):
    """Wires a source and an encoder into training, validation and test loaders.

    Args:
        source: the data set. encoder: Sample -> Encoded -> Batch, called in workers.
        batch_size, eval_batch_size: samples per (micro-)batch on one rank: two ranks with 16 take the steps of one with 32.
        num_workers: worker processes of each loader; 0 works in the main process.
        seed: of the training order.
        count_fn: items per normaliser group, see ``WindowedLoader``; None: ``batch.counts``.
        accumulate: micro-batches per optimiser step; must be the trainer's ``accumulate_grad_batches``.
        val_images: size of the fixed subset of ``val``.
        on_error: ``raise`` or ``skip`` for samples whose image cannot be read.
        limit_train_batches: batches per epoch; None: the trainer's, if that is a number of batches.
        curriculum: easy samples first; None: in any order.
        eval_answers: test batches hold the true answers too.
    """

    def __init__(
        self, *, source: DataSource, encoder: Encoder, batch_size: int, eval_batch_size: int, num_workers: int, seed: int,
        count_fn: CountFn | None, accumulate: int, val_images: int, on_error: str, limit_train_batches: int | None = None,
        curriculum: Curriculum | None = None, eval_answers: bool = False,
    ) -> None:
        super().__init__()
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"data.on_error must be raise or skip, got {on_error!r}")
        if val_images < 1:
            raise ConfigError(f"data.val_images must be at least 1, got {val_images}")
        self.source, self.encoder, self.seed = source, encoder, seed
        self._batch_size, self._eval_batch_size, self._num_workers = batch_size, eval_batch_size, num_workers
        self._count_fn, self._accumulate, self._limit = count_fn, accumulate, limit_train_batches
        self._val_images, self._skip = val_images, on_error == "skip"
        self._curriculum, self._eval_answers = curriculum, eval_answers
        self._loaders: dict[str, WindowedLoader | EvalLoader] = {}

    def train_dataloader(self) -> WindowedLoader:
        split, trainer = self.source.split("train"), self.trainer
        if trainer is not None and trainer.accumulate_grad_batches != self._accumulate:
            raise ConfigError(
                f"the trainer accumulates {trainer.accumulate_grad_batches} batches and the loader's windows have "
                f"{self._accumulate}: losses would be normalised wrongly"
            )
        if trainer is not None and trainer.overfit_batches:  # type: ignore[attr-defined]
            raise ConfigError("trainer.overfit_batches would still shuffle; give the source few images instead (num_train, num_images)")
        loader = WindowedLoader(
            EncodedSplit(split, self.encoder, with_answer=True), self._sampler(), Collate(self.encoder), num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(), count_fn=self._count_fn, accumulate=self._accumulate, limit=self._batch_limit(),
            skip_errors=self._skip, processed=self._processed(), epoch=0 if trainer is None else trainer.current_epoch,
        )
        if trainer is not None:
            _leave_finished_epoch(trainer, len(loader))
        self._close("train")
        self._loaders["train"] = loader
        return loader

    def val_dataloader(self) -> EvalLoader:
        """The fixed subset of ``val``, with answers: for teacher-forced diagnostics and for decoding from the prompt part."""
        return self._eval_loader("val", self.val_indices(), with_answer=True, limit="limit_val_batches")

    def test_dataloader(self) -> EvalLoader:
        """All of ``test``, prompts only. Broken truth boxes do not matter here; unreadable images do."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, name: str) -> EvalLoader:
        """All of a split by ascending id; prompts only, or with answers where the answerer reads them."""
        split = self.source.split(name)
        return self._eval_loader(name, np.argsort(split.ids, kind="stable"), with_answer=self._eval_answers, limit="limit_test_batches")

    def first_samples(self) -> list[Sample]:
        """The samples of the first training batch of rank 0, epoch 0, in order."""
        split = self.source.split("train")
        return [split.sample(int(i), 0) for i in self._sampler().order(0)[: self._batch_size]]

    def val_indices(self) -> NDArray[np.int64]:
        """int64: positions of the validation subset, by ascending id. The same for every run on this data."""
        ids = self.source.split("val").ids
        picked = keyed_generator(_SUBSET_SEED, "val_subset").permutation(len(ids))[: self._val_images]
        return picked[np.argsort(ids[picked], kind="stable")]

    def val_ids(self) -> NDArray[np.int64]:
        """int64: ids of the validation subset, ascending; ``source.truth("val").subset(val_ids)`` is its truth."""
        return self.source.split("val").ids[self.val_indices()]

    def unreadable(self) -> Mapping[str, int]:
        """Messages of samples left out by ``on_error=skip`` since their loader was made -> how often."""
        return {message: n for loader in self._loaders.values() for message, n in loader.skipped.items()}

    def teardown(self, stage: str) -> None:
        if stage == "fit":
            self._close("train")

    def _eval_loader(self, name: str, indices: NDArray[np.int64], *, with_answer: bool, limit: str) -> EvalLoader:
        if (world_size := self._ranks().get("world_size", 1)) > 1:
            indices = self._shared(indices, limit, world_size)
        loader = EvalLoader(
            EncodedSplit(self.source.split(name), self.encoder, with_answer=with_answer), indices, Collate(self.encoder),
            batch_size=self._eval_batch_size, num_workers=self._num_workers, pin_memory=torch.cuda.is_available(),
            skip_errors=self._skip, **self._ranks(),
        )
        self._loaders[name] = loader
        return loader

    def _shared(self, indices: NDArray[np.int64], limit: str, world_size: int) -> NDArray[np.int64]:
        """What all ranks together go through. A limit means batches of one process; the trainer would count those of each rank."""
        batches = getattr(self.trainer, limit)
        if isinstance(batches, float) and batches not in (0.0, 1.0):
            raise ConfigError(f"trainer.{limit} must be a number of batches, not a share, with several processes; got {batches}")
        if isinstance(batches, int):
            indices = indices[: batches * self._eval_batch_size]
        if 0 < len(indices) < world_size:
            raise ConfigError(f"{len(indices)} images cannot be shared among {world_size} processes; evaluate more, or use fewer")
        return indices

    def _ranks(self) -> dict[str, int]:
        trainer = self.trainer
        return {} if trainer is None else {"rank": trainer.global_rank, "world_size": trainer.world_size}

    def _sampler(self) -> EpochBatches:
        """The order of training on this rank."""
        order: dict[str, int] = {"batch_size": self._batch_size, "seed": self.seed, **self._ranks()}
        plain = EpochBatches(len(self.source.split("train")), **order)
        if self._curriculum is None:
            return plain
        source = self.source.source if isinstance(self.source, Augmented) else self.source
        limit, total = self._batch_limit(), 1
        if self.trainer is not None:
            total = _total_steps(self.trainer, len(plain) if limit is None else min(len(plain), limit))
        return self._curriculum.batches(source, total_steps=total, accumulate=self._accumulate, limit=limit, **order)

    def _processed(self) -> Callable[[], int] | None:
        if self.trainer is None:
            return None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        return lambda: int(progress.current.processed)

    def _batch_limit(self) -> int | None:
        """Batches per epoch. The last window ends there, so the loader must know; a share of an epoch is refused."""
        limit = None if self.trainer is None else self.trainer.limit_train_batches
        if isinstance(limit, float):
            if limit != 1.0:
                raise ConfigError(f"trainer.limit_train_batches must be a number of batches, not a share, got {limit}")
            limit = None
        limits = [x for x in (limit, self._limit) if x is not None]
        return min(limits) if limits else None

    def _close(self, name: str) -> None:
        loader = self._loaders.get(name)
        if isinstance(loader, WindowedLoader):
            loader.close()


def _total_steps(trainer: lightning.Trainer, num_batches: int) -> int:
    """Optimiser steps of the whole run, as the trainer counts them; it cannot be asked before it has the loader."""
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs * -(-num_batches // trainer.accumulate_grad_batches))
    if not limits:
        raise ConfigError("data.curriculum takes a share of all steps: set trainer.max_steps or trainer.max_epochs")
    return min(limits)


def _leave_finished_epoch(trainer: lightning.Trainer, num_batches: int) -> None:
    """Let a run that is resumed from the very end of an epoch begin the next one at batch 0.

    A checkpoint saved in or after the hooks of an epoch's end holds a full batch counter. Lightning 2.6 goes on counting from there
    if no validation is due, so it would step after one batch of the first window and call that an epoch.
    """
    progress: Any = trainer.fit_loop.epoch_progress
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    over = progress.current.ready == progress.current.processed and batches.completed >= num_batches
    if trainer.fit_loop.restarting and over:
        batches.reset()
        if progress.current.completed < progress.current.processed:
            progress.increment_completed()
