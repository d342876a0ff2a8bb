"""Rows of the new tokens (K coordinates, then M markers) as parameters of their own, outside the Hugging Face table.

The Qwen table is padded, so the first new ids lie inside it and later ones beyond: ``row_of_id`` decides, never a comparison
with the table's size. Rows stay float32 whatever the model's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coordvlm.coords.vocab import CoordVocab
from coordvlm.models.wide import AtLeastFloat32
from coordvlm.utils.errors import ConfigError, ContractError

INITS = ("digits", "fourier", "mean", "existing")


class CoordRows(AtLeastFloat32):
    """One parameter [K + M, d] when the base is tied, two (in, out) when not.

    Args:
        vocab: ids of the new tokens.
        table: float[V, d], the base input table. head: float[V, d], the base output table; None when tied.
        init: ``digits`` (mean of the embeddings of k's digits plus a smooth part), ``fourier`` (smooth functions of k / (K - 1), so that
            neighbours start similar), ``mean``, or ``existing`` (the table's own rows at these ids: an exported model is trained on).
        scale: norm of a coordinate row relative to the typical row of the base table.
        digit_ids: ids of the characters 0-9, needed by ``digits``.
        smooth: share of the smooth part for ``digits``.
        kept_ids: for ``existing``: new-token ids whose rows are copied from the table.
        seed: of the small noise that keeps rows apart.
    """

    row_of_id: Tensor
    new_ids: Tensor
    shadow: Tensor

    def __init__(
        self,
        vocab: CoordVocab,
        table: Tensor,
        head: Tensor | None,
        *,
        init: str,
        scale: float,
        digit_ids: list[int] | None = None,
        smooth: float = 0.5,
        kept_ids: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if init not in INITS:
            raise ConfigError(f"coordinate rows init must be one of {', '.join(INITS)}, got {init!r}")
        self.num_bins, self.num_base = vocab.num_bins, int(table.shape[0])
        ids = torch.from_numpy(vocab.new_ids.copy())
        row_of_id = torch.full((max(self.num_base, vocab.num_ids),), -1, dtype=torch.long)
        row_of_id[ids] = torch.arange(len(ids))
        orphans = torch.nonzero(row_of_id[self.num_base : vocab.num_ids] < 0)
        if len(orphans):
            raise ContractError(
                f"token id {self.num_base + int(orphans[0])} is beyond the table of {self.num_base} rows and has no row of its own"
            )
        self.register_buffer("row_of_id", row_of_id, persistent=False)
        self.register_buffer("new_ids", ids, persistent=False)
        self.register_buffer("shadow", row_of_id[: self.num_base] >= 0, persistent=False)
        used = np.setdiff1d(np.arange(min(self.num_base, vocab.num_ids)), vocab.new_ids)
        make = {"init": init, "scale": scale, "digit_ids": digit_ids, "smooth": smooth}
        generator = torch.Generator().manual_seed(seed)
        kept = torch.as_tensor(kept_ids, dtype=torch.long)
        make |= {"kept": (row_of_id[kept], kept)}
        self.rows_in = nn.Parameter(initial_rows(table.detach()[used], table.detach(), vocab.num_bins, len(ids), generator, **make))  # type: ignore[arg-type]
        self.rows_out: nn.Parameter | None = None
        if head is not None:
            self.rows_out = nn.Parameter(initial_rows(head.detach()[used], head.detach(), vocab.num_bins, len(ids), generator, **make))  # type: ignore[arg-type]

        if not len(ids):  # digits: nothing is new, nothing to train
            self.requires_grad_(False)

    @property
    def out(self) -> Tensor:
        """float32[K + M, d], the rows the head multiplies with."""
        return self.rows_in if self.rows_out is None else self.rows_out

    def embed(self, input_ids: Tensor, base: nn.Embedding) -> Tensor:
        """[..., d] in the base table's dtype. Always touches the rows, so no rank of a distributed run leaves them out."""
        if not len(self.new_ids):
            return base(input_ids)  # type: ignore[no-any-return]
        row = self.row_of_id[input_ids]
        is_new = row >= 0
        old = base(input_ids.masked_fill(is_new, 0))
        new = F.embedding(row.clamp(min=0), self.rows_in).to(old.dtype)
        return torch.where(is_new[..., None], new, old)

    def columns(self, token_ids: Tensor) -> Tensor:
        """Token ids -> columns of ``z`` (base columns, then new rows)."""
        row = self.row_of_id[token_ids]
        return torch.where(row >= 0, row + self.num_base, token_ids)

    def token_ids(self, columns: Tensor) -> Tensor:
        """Columns of ``z`` -> token ids."""
        if not len(self.new_ids):
            return columns
        new = self.new_ids[(columns - self.num_base).clamp(min=0)]
        return torch.where(columns >= self.num_base, new, columns)


def initial_rows(
    used_UD: Tensor,
    table_VD: Tensor,
    num_bins: int,
    num_rows: int,
    generator: torch.Generator,
    *,
    init: str,
    scale: float,
    digit_ids: list[int] | None,
    smooth: float,
    kept: tuple[Tensor, Tensor],
) -> Tensor:
    """float32[num_rows, d]; markers start at the mean of the used rows plus noise of a typical row's size.

    Args:
        kept: (rows, ids), long[n] each: rows that are copied from the table.
    """
    used = used_UD.float()
    norm, width = used.norm(dim=-1).median(), used.shape[1]
    noise = torch.randn((num_rows, width), generator=generator) * norm / math.sqrt(width)
    rows = used.mean(0) + noise
    if init == "existing":
        rows[kept[0]] = table_VD[kept[1]].float()
        return rows  # type: ignore[no-any-return]
    if not num_bins:
        return rows  # type: ignore[no-any-return]
    if init == "mean":
        rows[:num_bins] = unit_rms(used.mean(0)) * norm / math.sqrt(width) + 0.1 * noise[:num_bins]
    elif init == "fourier":
        rows[:num_bins] = unit_rms(smooth_rows(num_bins, width, generator)) * norm / math.sqrt(width)
    else:
        if not digit_ids or len(digit_ids) != 10:
            raise ConfigError("init=digits needs the tokenizer's ids of the digits 0-9; use init=fourier or mean")
        digits = table_VD[torch.as_tensor(digit_ids)].float()
        mean = torch.stack([digits[[int(c) for c in str(k)]].mean(0) for k in range(num_bins)])
        mixed = (1 - smooth) * unit_rms(mean) + smooth * unit_rms(smooth_rows(num_bins, width, generator))
        rows[:num_bins] = unit_rms(mixed) * norm / math.sqrt(width)
    rows[:num_bins] *= scale
    return rows  # type: ignore[no-any-return]


def unit_rms(x: Tensor) -> Tensor:
    return x / x.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-12)


def smooth_rows(num_bins: int, width: int, generator: torch.Generator) -> Tensor:
    """float32[K, width]: random mixtures of sines and cosines of k / (K - 1), from half a wave to about K / 8 waves."""
    position = torch.linspace(0, 1, num_bins)
    waves = 0.5 * 2 ** (torch.rand((width,), generator=generator) * math.log2(num_bins / 4))
    phase = torch.rand((width,), generator=generator) * 2 * math.pi
    return torch.sin(2 * math.pi * position[:, None] * waves + phase)
