"""Key-value cache of the decode loop: right-padded rows, each written at its own position, rows that finish are dropped.

Shapes: B rows, H key-value heads, S capacity, W head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class RowCache(DynamicCache):
    """Static buffers per layer, grown never, compacted when rows leave.

    The prefill writes positions [0, T) of every row, also behind a shorter prompt; those places are overwritten by the row's own new
    tokens and are masked until then. So no left padding, no attention mask in the prefill, and positions stay what they were in training.

    Args:
        capacity: S, prompt plus new tokens.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.write_at: Tensor | None = None
        self.visible = 0

    def step(self, write_at: Tensor, visible: int) -> Tensor:
        """Prepare one decode step. ``write_at``: long[B] position of the new token; ``visible``: columns to attend over.

        Returns:
            bool[B, 1, 1, visible], True where a row may look.
        """
        self.write_at, self.visible = write_at, visible
        return (torch.arange(visible, device=write_at.device) <= write_at[:, None])[:, None, None]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """[B, H, t, W] of this call -> keys and values to attend over."""
        if self.write_at is None:  # prefill
            b, h, t, w = key_states.shape
            for store, states in ((self.keys, key_states), (self.values, value_states)):
                store[layer_idx] = states.new_zeros((b, h, self.capacity, w))
                store[layer_idx][:, :, :t] = states
            return key_states, value_states
        rows = torch.arange(len(self.write_at), device=self.write_at.device)
        for store, states in ((self.keys, key_states), (self.values, value_states)):
            store[layer_idx][rows, :, self.write_at] = states[:, :, 0]
        return self.keys[layer_idx][:, :, : self.visible], self.values[layer_idx][:, :, : self.visible]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing the model derives from this is used: positions and masks are always given."""
        return 0 if self.write_at is None else self.visible - 1

    def keep(self, index: Tensor) -> None:
        """Keep only the rows ``index``, long[b]."""
        for store in (self.keys, self.values):
            for layer in store:
                store[layer] = store[layer].index_select(0, index)
