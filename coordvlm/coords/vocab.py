"""Bin <-> token id, and the ids of the markers. Ids come from a tokenizer, never from literals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordvlm.utils.errors import ContractError


@dataclass(frozen=True)
class CoordVocab:
    """Token ids of one tokenizer.

    Args:
        coord_ids: int64[K], the id of bin k. Distinct; need not be consecutive. Empty for formats that write digits.
        marker_ids: marker text -> id (``<obj_start>`` ...), in the order of the contract.
        end_id: end of turn. pad_id: fills the right side of a batch. image_id: the image placeholder.
        num_ids: one more than the largest id of the tokenizer.
        new_markers: markers that own a new-token row; None: all. The others are the base model's own and keep their rows.
    """

    coord_ids: NDArray[np.int64]
    marker_ids: Mapping[str, int]
    end_id: int
    pad_id: int
    image_id: int
    num_ids: int
    new_markers: tuple[str, ...] | None = None
    bin_of_id: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if unknown := set(self.new_markers or ()) - set(self.marker_ids):
            raise ContractError(f"new markers {sorted(unknown)} are not among the markers {list(self.marker_ids)}")
        ids = np.concatenate([self.coord_ids, np.asarray(list(self.marker_ids.values()), dtype=np.int64)])
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise ContractError(f"coordinate and marker tokens must have distinct ids, shared: {values[counts > 1][:5].tolist()}")
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_ids):
            raise ContractError(f"token ids must lie in [0, {self.num_ids}), got {ids.min()} .. {ids.max()}")
        table = np.full(self.num_ids, -1, dtype=np.int64)
        table[self.coord_ids] = np.arange(len(self.coord_ids))
        object.__setattr__(self, "bin_of_id", table)

    @property
    def num_bins(self) -> int:
        return len(self.coord_ids)

    @property
    def new_ids(self) -> NDArray[np.int64]:
        """int64[K + M]: ids that own a new-token row, coordinates first, then new markers."""
        markers = [i for m, i in self.marker_ids.items() if self.new_markers is None or m in self.new_markers]
        return np.concatenate([self.coord_ids, np.asarray(markers, dtype=np.int64)])

    def bins(self, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bin of each id, -1 for anything that is not a coordinate token."""
        ids = np.asarray(token_ids, dtype=np.int64)
        inside = (ids >= 0) & (ids < self.num_ids)
        return np.where(inside, self.bin_of_id[np.where(inside, ids, 0)], -1)
