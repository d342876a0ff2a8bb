"""The language-model head on gathered rows: exact log-normalisers without keeping logits.

``z`` = live base columns, then the new-token rows. A base column whose id has a new row (``shadow``) takes part in nothing.

Shapes: R gathered rows, D width, V rows of the base table, E new rows (K coordinates first, then markers).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

#: Bytes of float32 logits that exist at a time. Measured on 2 cores with 152,960 columns: 16-128 MB run alike, larger ones slower.
CHUNK_BYTES = 48 * 2**20


def full_logits(h_RD: Tensor, base_VD: Tensor, rows_ED: Tensor, shadow_V: Tensor) -> Tensor:
    """float32[R, V + E], dead columns at -inf; for a handful of rows (decoding, tests)."""
    h_RD = h_RD.to(base_VD.dtype)
    base = (h_RD @ base_VD.T).float().masked_fill(shadow_V, float("-inf"))
    return torch.cat((base, h_RD.float() @ rows_ED.float().T), -1)


def lse_and_target(
    h_RD: Tensor, base_VD: Tensor, rows_ED: Tensor, shadow_V: Tensor, target_R: Tensor, num_bins: int, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-normaliser, target logit and log-mass of the coordinate columns of every row, in chunks.

    Logits are recomputed in the backward, so memory is one chunk, not ``R x V``. The base matmul runs in the weights' dtype, the
    new rows and every logsumexp in float32 (float64 stays).

    Args:
        target_R: long[R], column of ``z`` (base id, or V + row); any valid column where the target logit is not used.
        num_bins: K, the first K new rows are coordinates.
    Returns:
        lse[R], z_target[R], coord_lse[R], and bool[R]: no column is above the target's.
    """
    return _HeadLse.apply(h_RD, base_VD, rows_ED, shadow_V, target_R, num_bins, chunk_bytes)  # type: ignore[no-any-return, no-untyped-call]


def _acc_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _HeadLse(torch.autograd.Function):
    @staticmethod
    def _chunks(h: Tensor, base: Tensor, rows: Tensor, chunk_bytes: int) -> list[slice]:
        step = max(1, chunk_bytes // (4 * (base.shape[0] + rows.shape[0])))
        return [slice(i, min(i + step, h.shape[0])) for i in range(0, h.shape[0], step)]

    @staticmethod
    def _logits(h: Tensor, base: Tensor, rows: Tensor, shadow: Tensor) -> tuple[Tensor, Tensor]:
        acc = _acc_dtype(base)
        z = (h.to(base.dtype) @ base.T).to(acc)
        return z.masked_fill_(shadow, float("-inf")), h.to(acc) @ rows.to(acc).T

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx, h: Tensor, base: Tensor, rows: Tensor, shadow: Tensor, target: Tensor, num_bins: int, chunk_bytes: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        acc, num_base = _acc_dtype(base), base.shape[0]
        lse, z_target, coord = (torch.empty(h.shape[0], dtype=acc, device=h.device) for _ in range(3))
        best = torch.empty(h.shape[0], dtype=torch.bool, device=h.device)
        with torch.autocast(h.device.type, enabled=False):
            for part in _HeadLse._chunks(h, base, rows, chunk_bytes):
                z, z_new = _HeadLse._logits(h[part], base, rows, shadow)
                y = target[part, None]
                in_base = y < num_base
                old = z.gather(1, y.clamp(max=num_base - 1))
                top = z.amax(-1)
                if rows.shape[0]:  # formats that write digits have no new rows
                    old = torch.where(in_base, old, z_new.gather(1, (y - num_base).clamp(min=0)))
                    top = torch.maximum(top, z_new.amax(-1))
                z_target[part] = old.squeeze(1)
                best[part] = z_target[part] >= top
                # exp in place: torch.logsumexp would hold two more copies of the chunk
                lse[part] = (z.sub_(top[:, None]).exp_().sum(-1) + (z_new - top[:, None]).exp().sum(-1)).log() + top
                coord[part] = z_new[:, :num_bins].logsumexp(-1)
        ctx.save_for_backward(h, base, rows, shadow, target, lse, coord)  # type: ignore[attr-defined]
        ctx.args = (num_bins, chunk_bytes)  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(best)  # type: ignore[attr-defined]
        return lse, z_target, coord, best

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, g_lse: Tensor, g_target: Tensor, g_coord: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        h, base, rows, shadow, target, lse, coord = ctx.saved_tensors  # type: ignore[attr-defined]
        num_bins, chunk_bytes = ctx.args  # type: ignore[attr-defined]
        need_h, need_base, need_rows = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        acc, num_base = _acc_dtype(base), base.shape[0]
        d_h = torch.zeros_like(h) if need_h else None
        d_base = torch.zeros_like(base, dtype=acc) if need_base else None
        d_rows = torch.zeros_like(rows, dtype=acc) if need_rows else None
        with torch.autocast(h.device.type, enabled=False):
            for part in _HeadLse._chunks(h, base, rows, chunk_bytes):
                z, z_new = _HeadLse._logits(h[part], base, rows, shadow)
                d_z = z.sub_(lse[part, None]).exp_().mul_(g_lse[part, None])
                d_new = (z_new - lse[part, None]).exp_().mul_(g_lse[part, None])
                d_new[:, :num_bins] += (z_new[:, :num_bins] - coord[part, None]).exp() * g_coord[part, None]
                y, g = target[part, None], g_target[part, None]
                in_base = y < num_base
                d_z.scatter_add_(1, y.clamp(max=num_base - 1), torch.where(in_base, g, torch.zeros_like(g)))
                if rows.shape[0]:
                    d_new.scatter_add_(1, (y - num_base).clamp(min=0), torch.where(in_base, torch.zeros_like(g), g))
                low = d_z.to(base.dtype)
                if d_h is not None:
                    d_h[part] = ((low @ base).to(acc) + d_new @ rows.to(acc)).to(h.dtype)
                if d_base is not None:
                    d_base += (low.T @ h[part].to(base.dtype)).to(acc) if base.dtype != acc else low.T @ h[part].to(acc)
                if d_rows is not None:
                    d_rows += d_new.T @ h[part].to(acc)
        return (
            d_h,
            None if d_base is None else d_base.to(base.dtype),
            None if d_rows is None else d_rows.to(rows.dtype),
            None,
            None,
            None,
            None,
        )
