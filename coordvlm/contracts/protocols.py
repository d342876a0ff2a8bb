"""Where siblings meet: interfaces that one package implements and another one calls, wired in ``coordvlm.build``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from coordvlm.contracts.batch import Batch, Encoded
from coordvlm.contracts.prediction import Decoded, Prediction
from coordvlm.contracts.sample import Sample


class Encoder(Protocol):
    """Sample -> Encoded, in a worker process; and Encoded -> Batch."""

    def encode(self, sample: Sample, *, epoch: int, with_answer: bool = True) -> Encoded:
        """Open and resize the image, build prompt and answer. Deterministic in (seed, epoch, sample.id)."""

    def collate(self, encoded: Sequence[Encoded]) -> Batch: ...


class CountFn(Protocol):
    """Items per normaliser group of one micro-batch, from labels (``WeightedSum.counts``)."""

    def __call__(self, batch: Batch) -> Mapping[str, int]: ...


class Grammar(Protocol):
    """A mask over the next token, batched. Shapes: B rows, C columns of the head (base table, then new rows)."""

    def start(self, batch_size: int, device: object) -> Tensor:
        """Initial state, long[B, S]; moves the grammar's tables to ``device``."""

    def allowed(self, state: Tensor) -> Tensor:
        """bool[B, C], True where a token may come next; every row allows at least one."""

    def advance(self, state: Tensor, columns: Tensor) -> Tensor:
        """State after emitting long[B] columns."""


class Parser(Protocol):
    """Decoded tokens -> Prediction."""

    def parse(self, decoded: Decoded, *, size: tuple[int, int], readout: str, phrase: str | None = None) -> Prediction:
        """Records of one answer; with a ``phrase``, its things are described as ``TARGET`` whatever the answer calls them."""
