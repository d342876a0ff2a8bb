"""Final hidden states -> ``ModelOutput``: heads on the rows that some term reads, and on no others.

Shapes: B samples, T tokens, D width, V rows of the base table, K bins.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from coordvlm.contracts import Batch, ModelOutput
from coordvlm.models.coord_rows import CoordRows
from coordvlm.models.head import lse_and_target
from coordvlm.models.heads import read_heads


def read_output(
    flat_hidden: Tensor, batch: Batch, needs: Collection[str], *, rows: CoordRows, head_weight: Tensor, heads: nn.ModuleDict
) -> ModelOutput:
    """Exactly what ``needs`` names.

    Args:
        flat_hidden: [B * T, D]. rows: the new-token rows. head_weight: [V, D], the base output table.
    """
    out: dict[str, Any] = {}
    k = rows.num_bins
    text = {"text_nll", "text_lse", "text_coord_lse", "text_correct"} & set(needs)
    slots = {"slot_lse", "slot_correct"} & set(needs)
    slot_rows = flat_hidden[batch.slot_row]
    if "slot_logits" in needs:
        with torch.autocast(flat_hidden.device.type, enabled=False):
            bins = rows.out[:k]
            out["slot_logits"] = slot_rows.to(bins.dtype) @ bins.T
    if text or slots:
        parts, targets = [], []
        if text:
            parts.append(flat_hidden[batch.text_row])
            targets.append(rows.columns(batch.text_target))
        if slots:
            parts.append(slot_rows)
            targets.append(batch.slot_bin + rows.num_base)
        lse, z_target, coord, best = lse_and_target(
            torch.cat(parts), head_weight, rows.out, rows.shadow, torch.cat(targets), k
        )
        num_text = len(batch.text_row) if text else 0
        values = {"text_nll": (lse - z_target)[:num_text], "text_lse": lse[:num_text], "text_coord_lse": coord[:num_text]}
        values |= {"text_correct": best[:num_text], "slot_lse": lse[num_text:], "slot_correct": best[num_text:]}
        out.update({name: values[name] for name in text | slots})
    out |= read_heads(heads, flat_hidden, batch, needs)
    return ModelOutput(**out)
