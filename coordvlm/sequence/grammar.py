"""The `objects` grammar as a mask over the next column: start marker, description, exactly four coordinates, end marker.

Shapes: B rows, C columns of the head, K bins, state long[B, 3] = (state, x1 bin, y1 bin).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEXT, DESC_FIRST, DESC, Y1, X2, Y2, CLOSE, DONE = range(8)


class ObjectsGrammar:
    """``x2 >= x1`` and ``y2 >= y1`` are part of the grammar.

    Args:
        num_columns: C. coord_columns: long[K], contiguous, in bin order. start, end: columns of the markers. end_of_turn: its column.
        forbidden: columns that may never be part of a description (control tokens, image placeholders).
        blank: columns that are only white space; a description may not begin with one, so it is never empty.
    """

    def __init__(
        self,
        *,
        num_columns: int,
        coord_columns: Sequence[int],
        start: int,
        end: int,
        end_of_turn: int,
        forbidden: Sequence[int],
        blank: Sequence[int] = (),
    ) -> None:
        self.num_columns, self.num_bins, self.first = num_columns, len(coord_columns), int(coord_columns[0])
        if list(coord_columns) != list(range(self.first, self.first + self.num_bins)):
            raise ValueError("coord_columns must be contiguous and in bin order")
        self.start_column, self.end_column, self.end_of_turn = start, end, end_of_turn
        coord = torch.zeros(num_columns, dtype=torch.bool)
        coord[list(coord_columns)] = True
        text = ~coord
        text[[start, end, end_of_turn, *forbidden]] = False
        masks = torch.zeros((8, num_columns), dtype=torch.bool)
        masks[NEXT, [start, end_of_turn]] = True
        masks[DESC_FIRST] = text
        masks[DESC_FIRST, list(blank)] = False
        masks[DESC] = text | coord
        masks[[Y1, X2, Y2]] = coord
        masks[CLOSE, end] = True
        masks[DONE, end_of_turn] = True
        self.masks = masks
        #: next state after a text token, a coordinate, the start marker, the end marker, end of turn
        table = torch.full((8, 5), DONE, dtype=torch.long)
        table[[DESC_FIRST, DESC], 0] = DESC
        table[DESC, 1], table[Y1, 1], table[X2, 1], table[Y2, 1] = Y1, X2, Y2, CLOSE
        table[NEXT, 2], table[CLOSE, 3] = DESC_FIRST, NEXT
        self.table = table
        self.bins = torch.arange(self.num_bins)

    def start(self, batch_size: int, device: object) -> Tensor:
        """long[B, 3]: every row expects an object or the end of turn."""
        for name in ("masks", "table", "bins"):
            setattr(self, name, getattr(self, name).to(device))
        return torch.zeros((batch_size, 3), dtype=torch.long, device=self.masks.device)

    def allowed(self, state: Tensor) -> Tensor:
        """bool[B, C]."""
        mask = self.masks[state[:, 0]]
        low = torch.where(state[:, 0] == X2, state[:, 1], torch.where(state[:, 0] == Y2, state[:, 2], -1))
        mask[:, self.first : self.first + self.num_bins] &= self.bins >= low[:, None]
        return mask

    def advance(self, state: Tensor, columns: Tensor) -> Tensor:
        """State after emitting ``columns``, long[B]."""
        bin_ = columns - self.first
        is_coord = (bin_ >= 0) & (bin_ < self.num_bins)
        kind = torch.where(is_coord, 1, 0)
        kind = torch.where(columns == self.start_column, 2, kind)
        kind = torch.where(columns == self.end_column, 3, kind)
        kind = torch.where(columns == self.end_of_turn, 4, kind)
        x1 = torch.where(is_coord & (state[:, 0] == DESC), bin_, state[:, 1])
        y1 = torch.where(is_coord & (state[:, 0] == Y1), bin_, state[:, 2])
        return torch.stack((self.table[state[:, 0], kind], x1, y1), -1)
