"""CoordExp: from scores over coordinate bins to a coordinate that carries a gradient.

Shapes: B batch, T tokens, V vocabulary, N slots, K bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from coordvlm.coords import readout
from coordvlm.coords.grid import Grid
from coordvlm.utils.errors import ConfigError

READS = ("expectation", "argmax", "straight_through", "topk", "local")


class CoordExp(nn.Module):
    """Decodes coordinate slots: ``c_hat = sum_k softmax(s / T)_k v_k`` and its relatives.

    | read | value | gradient |
    |---|---|---|
    | ``expectation`` | mean over all bins | of the mean |
    | ``local`` | mean within +-``window`` bins of the mode: sub-bin, without averaging two modes | of that mean |
    | ``topk`` | mean over the ``top_k`` most likely bins | of that mean |
    | ``argmax`` | the most likely bin | none |
    | ``straight_through`` | the most likely bin | of ``expectation`` |

    Args:
        grid: gives the bin values v_k.
        read: one of the table.
        temperature: T > 0. Training with T < 1 flattens the distribution that is deployed at T = 1.
        window: half width in bins, >= 0; read by ``local`` only.
        top_k: in [1, K]; read by ``topk`` only.
    """

    bins: Tensor

    def __init__(self, grid: Grid, *, read: str, temperature: float, window: int, top_k: int) -> None:
        super().__init__()
        if read not in READS:
            raise ConfigError(f"loss.decode.read must be one of {', '.join(READS)}, got {read!r}")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(f"loss.decode.temperature must be finite and above 0, got {temperature!r}")
        if window < 0:
            raise ConfigError(f"loss.decode.window must be at least 0, got {window!r}")
        if grid.num_bins and not 1 <= top_k <= grid.num_bins:  # coordinates in digits have no bins, and nothing to decode
            raise ConfigError(f"loss.decode.top_k must lie in [1, {grid.num_bins}], got {top_k!r}")
        self.grid, self.read, self.temperature, self.window, self.top_k = grid, read, float(temperature), window, top_k
        # Integers survive `module.to(bfloat16)`; bin values as a float buffer would lose all but 8 bits there.
        self.register_buffer("bins", torch.arange(grid.num_bins), persistent=False)

    def extra_repr(self) -> str:
        return f"{self.grid.name}, read={self.read}, temperature={self.temperature}"

    def forward(self, slot_logits_NK: Tensor) -> Tensor:
        """float[..., K] scores in bin order -> float32[...] (float64 for float64 scores) normalised coordinates."""
        if slot_logits_NK.shape[-1] != self.grid.num_bins:
            columns = slot_logits_NK.shape[-1]
            raise ValueError(f"slot logits have {columns} columns, the grid {self.grid.name} has {self.grid.num_bins} bins")
        s_NK = readout.upcast(slot_logits_NK)
        values_K = self.grid.decode_tensor(self.bins.to(s_NK.dtype))
        if self.read == "argmax":
            return readout.argmax(s_NK, values_K)
        if self.read == "local":
            return readout.local_expectation(s_NK, values_K, self.window, self.temperature)
        if self.read == "topk":
            return readout.topk_expectation(s_NK, values_K, self.top_k, self.temperature)
        if self.read == "straight_through":
            return readout.straight_through(s_NK, values_K, self.temperature)
        return readout.expectation(s_NK, values_K, self.temperature)

    def from_logits(self, logits_BTV: Tensor, positions: Tensor, coord_token_ids: Tensor, *, shifted: bool = False) -> Tensor:
        """Decode coordinates straight from a language model's logits.

        Args:
            logits_BTV: float[B, T, V], as a causal model returns them: row t scores the token at t + 1.
            positions: where the *coordinate tokens* stand in ``input_ids``. long[N] flat positions ``b * T + t``, or
                long[..., 2] pairs ``(b, t)`` (e.g. [M, 4, 2] for boxes). One axis is always read as flat. The row at
                t - 1, which predicts the token, is read, so t >= 1.
            coord_token_ids: long[K], the token id of every bin in bin order, distinct.
            shifted: ``positions`` already are predicting rows (like every ``*_row`` of a Batch); t - 1 is not taken again.
        Returns:
            float32 of shape [N] or positions.shape[:-1], normalised coordinates, with graph.
        Raises:
            ValueError: wrong shapes, a position outside the logits, t = 0 (nothing predicts the first token), or ids that
                are not K distinct columns. The checks read the indices back from the device.
        """
        batch, tokens, vocab = logits_BTV.shape
        if coord_token_ids.shape != (self.grid.num_bins,) or len(torch.unique(coord_token_ids)) != self.grid.num_bins:
            raise ValueError(f"coord_token_ids must be {self.grid.num_bins} distinct ids, got shape {tuple(coord_token_ids.shape)}")
        if bool(((coord_token_ids < 0) | (coord_token_ids >= vocab)).any()):
            raise ValueError(f"coord_token_ids must lie in [0, {vocab})")
        if positions.ndim == 1:
            b, t = torch.div(positions, tokens, rounding_mode="floor"), positions % tokens
        elif positions.shape[-1:] == (2,):
            b, t = positions.unbind(-1)
        else:
            raise ValueError(f"positions must be long[N] (flat) or long[..., 2] (batch, token), got shape {tuple(positions.shape)}")
        first = 0 if shifted else 1
        outside = (b < 0) | (b >= batch) | (t < first) | (t >= tokens)
        if bool(outside.any()):
            bad = torch.stack((b, t), -1)[outside][:4].tolist()
            raise ValueError(f"positions (batch, token) must lie in [0, {batch}) x [{first}, {tokens}), got {bad}")
        coords: Tensor = self(logits_BTV[b[..., None], t[..., None] - first, coord_token_ids])
        return coords
