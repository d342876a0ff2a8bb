"""Loaders: order as a function of (seed, epoch, rank), encoding in worker processes, accumulation windows, exact resuming.

A position in an epoch counts batches. An accumulation window is one optimiser step: the trainer steps after every
``accumulate`` positions and at the end of an epoch, so windows are cut at multiples of ``accumulate``, at the last batch and
where a resumed run starts.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from coordvlm.contracts import Batch, CountFn, Encoded, Encoder, Sample, Window
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.source import DataSource, Split
from coordvlm.utils.errors import ConfigError, CoordVLMError, DataError

#: What a worker sends: a batch (None if no sample could be read) and the errors met.
WorkerResult = tuple[Batch | None, list[CoordVLMError]]


@dataclass(frozen=True)
class EncodedSplit(Dataset[Encoded | CoordVLMError]):
    """Samples of a split, encoded. Items are addressed by (epoch, index), so that workers may outlive an epoch.

    The index ``~i`` means the prompt of sample i alone: nothing in it is supervised.
    An error of the user's data is handed over as an item: raised in a worker, its message would drown in a traceback.
    """

    split: Split
    encoder: Encoder
    with_answer: bool

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> Encoded | CoordVLMError:
        epoch, index = key
        with_answer = self.with_answer and index >= 0
        try:
            return self.encoder.encode(self.split.sample(index if index >= 0 else ~index, epoch), epoch=epoch, with_answer=with_answer)
        except CoordVLMError as error:
            return error


@dataclass(frozen=True)
class Collate:
    """Items of ``EncodedSplit`` -> WorkerResult."""

    encoder: Encoder

    def __call__(self, items: Sequence[Encoded | CoordVLMError]) -> WorkerResult:
        errors = [item for item in items if isinstance(item, CoordVLMError)]
        encoded = [item for item in items if not isinstance(item, CoordVLMError)]
        try:
            return (self.encoder.collate(encoded) if encoded else None), errors
        except CoordVLMError as error:
            return None, [error]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Training order: a permutation by (seed, epoch), dealt out to ranks, cut into batches of (epoch, index).

    Batch i of all ranks together is batch i of a single process with ``world_size * batch_size`` samples, in the last, ragged batch
    too: no sample is repeated or left out. A rank that the last batch has nothing for gets a prompt without anything supervised
    (``~index``), so that every rank takes as many steps.

    Args:
        batch_size: samples per batch of one rank.
    """

    def __init__(self, num_samples: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if num_samples < 1:
            raise DataError("training needs at least one sample", where="train split", value=num_samples)
        if batch_size < 1:
            raise ConfigError(f"data.batch_size must be at least 1, got {batch_size}")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """int64: sample positions of an epoch for all ranks together."""
        return keyed_generator(self.seed, "order", epoch).permutation(self.num_samples)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """int64: this rank's sample positions in an epoch."""
        return self.permutation(epoch)[self.rank :: self.world_size]

    def meaning(self, epoch: int) -> dict[str, int]:
        """What a position in an epoch depends on; a run that was stopped there can only go on with the same."""
        return {"num_samples": self.num_samples, "batch_size": self.batch_size * self.world_size, "seed": self.seed}

    def seek(self, epoch: int, start: int) -> None:
        """Where the next iteration begins; skipped batches are never read or rendered."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = self.epoch, self.order(self.epoch).tolist()
        for at in range(self.start * self.batch_size, len(self) * self.batch_size, self.batch_size):
            yield [(epoch, index) for index in order[at : at + self.batch_size] or [~(order or [0])[0]]]

    def __len__(self) -> int:
        return -(-self.num_samples // (self.world_size * self.batch_size))


def first_samples(source: DataSource, *, batch_size: int, seed: int) -> list[Sample]:
    """The samples of the first training batch of a single rank at epoch 0, in order."""
    split = source.split("train")
    order = EpochBatches(len(split), batch_size=batch_size, seed=seed).order(0)
    return [split.sample(int(i), 0) for i in order[:batch_size]]


class WindowedLoader:
    """Training batches with their accumulation window, in an order that survives stopping and resuming.

    Each ``iter()`` goes on where the loader stands: in mid-epoch after ``load_state_dict`` (or a broken-off iteration), else with
    the next epoch. A window interrupted by stopping is not replayed: its gradients are gone and the trainer's counters stand
    inside it, so the rest becomes a window of its own, normalised by what is left.

    Args:
        dataset, sampler, collate: what to load; ``sampler.seek`` is called by this loader only.
        num_workers: worker processes, kept over epochs. pin_memory: for copies to an accelerator.
        count_fn: items per normaliser group of one micro-batch; None: ``batch.counts``.
        accumulate: micro-batches per optimiser step.
        limit: batches per epoch at most.
        skip_errors: leave out samples with a DataError and count them in ``skipped``, instead of raising.
        processed: batches of this epoch the trainer is done with. A batch handed out when training is interrupted is not.
    """

    def __init__(
        self, dataset: EncodedSplit, sampler: EpochBatches, collate: Collate, *, num_workers: int, pin_memory: bool,
        count_fn: CountFn | None, accumulate: int, limit: int | None = None, skip_errors: bool = False,
        processed: Callable[[], int] | None = None, epoch: int = 0,
    ) -> None:
        if accumulate < 1:
            raise ConfigError(f"accumulate must be at least 1, got {accumulate}")
        if limit is not None and limit < 1:
            raise ConfigError(f"limit_train_batches must be at least 1 batch, got {limit}")
        self.dataset, self.batch_sampler = dataset, sampler
        self._loader = _dataloader(dataset, sampler, collate, num_workers, pin_memory, sampler.seed, persistent=True)
        self._count_fn, self._accumulate, self._limit, self._processed = count_fn, accumulate, limit, processed
        self._skip_errors = skip_errors
        self.epoch, self.position = epoch, 0
        self.skipped: Counter[str] = Counter()
        self._run: object = None

    def __len__(self) -> int:
        """Batches of a whole epoch, also when resumed in the middle of one."""
        return len(self.batch_sampler) if self._limit is None else min(len(self.batch_sampler), self._limit)

    def __iter__(self) -> Iterator[Batch]:
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        self.batch_sampler.seek(self.epoch, self.position)
        self._run = run = object()
        return self._batches(iter(self._loader), run)

    def _batches(self, results: Iterator[WorkerResult], run: object) -> Iterator[Batch]:
        while self.position < len(self):
            end = min((self.position // self._accumulate + 1) * self._accumulate, len(self))
            window = [self._checked(result) for result in islice(results, end - self.position)]
            assert len(window) == end - self.position, "the sampler ended before the epoch"
            counts: Counter[str] = Counter()
            for batch in window:
                counts.update(batch.counts if self._count_fn is None else self._count_fn(batch))
            for index, batch in enumerate(window):
                if self._run is not run:
                    raise RuntimeError("this iteration was replaced by a later iter() of the same loader")
                self.position += 1
                yield replace(batch, window=Window(index, len(window), dict(counts), self._accumulate))

    def _checked(self, result: WorkerResult) -> Batch:
        batch, errors = result
        _handle(errors, self._skip_errors, self.skipped)
        if batch is None:
            raise DataError("no sample of a training batch could be read", where=str(errors[0]))
        return batch

    def state_dict(self) -> dict[str, int]:
        """Plain integers: epoch, batches of it that are done, and what gives a position its meaning (``EpochBatches.meaning``).

        ``batch_size`` counts the samples of all ranks, so one process may go on where two stopped, with twice as many each.
        """
        done = self.position if self._processed is None else min(self.position, self._processed())
        epoch, done = (self.epoch + 1, 0) if done >= len(self) else (self.epoch, done)
        return {"epoch": epoch, "position": done, **self.batch_sampler.meaning(epoch)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from ``state_dict``.

        Raises:
            ConfigError: in mid-epoch, with another order of samples: some would be seen twice and others never.
        """
        mine = self.batch_sampler.meaning(state["epoch"])
        keys = sorted(mine.keys() | state.keys() - {"epoch", "position"})
        changed = [f"{key} was {state.get(key)} and is {mine.get(key)}" for key in keys if state.get(key) != mine.get(key)]
        if changed and state["position"] > 0:
            raise ConfigError("cannot resume in the middle of an epoch, samples would repeat or be left out: " + "; ".join(changed))
        self.epoch, self.position = state["epoch"], state["position"]

    def close(self) -> None:
        """End the worker processes."""
        _shut_down(self._loader)


class EvalLoader:
    """Each chosen sample once, in the given order, at epoch 0; ranks take every ``world_size``-th and nothing is padded.

    Args:
        indices: positions in the split.
        skip_errors: leave out unreadable samples (they stay in the truth, without predictions) and count them.
    """

    def __init__(
        self, dataset: EncodedSplit, indices: NDArray[np.int64], collate: Collate, *, batch_size: int, num_workers: int,
        pin_memory: bool, skip_errors: bool = False, rank: int = 0, world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"data.eval_batch_size must be at least 1, got {batch_size}")
        self.dataset, self._skip_errors = dataset, skip_errors
        mine = [(0, int(i)) for i in indices[rank::world_size]]
        self._batches = [mine[at : at + batch_size] for at in range(0, len(mine), batch_size)]
        self._loader = _dataloader(dataset, self._batches, collate, num_workers, pin_memory, 0, persistent=False)
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        self.skipped.clear()
        for batch, errors in self._loader:
            _handle(errors, self._skip_errors, self.skipped)
            if batch is not None:
                yield batch


def _handle(errors: Sequence[CoordVLMError], skip: bool, skipped: Counter[str]) -> None:
    for error in errors:
        if not skip or not isinstance(error, DataError):
            raise error
        skipped[str(error)] += 1


def _dataloader(
    dataset: EncodedSplit, batches: Any, collate: Collate, num_workers: int, pin_memory: bool, seed: int, *, persistent: bool
) -> DataLoader[Any]:
    if num_workers < 0:
        raise ConfigError(f"data.num_workers must not be negative, got {num_workers}")
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, num_workers=num_workers, pin_memory=pin_memory,
        persistent_workers=persistent and num_workers > 0,
        generator=torch.Generator().manual_seed(seed),  # workers' seeds; the global stream stays the model's
        worker_init_fn=_ignore_interrupt,
    )


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal's group; workers end when the main process says so, after its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _shut_down(loader: DataLoader[Any]) -> None:
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
        loader._iterator = None
