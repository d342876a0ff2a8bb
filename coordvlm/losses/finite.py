"""Stops a run whose loss is no longer a number, naming the term and the samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coordvlm.losses.weighted_sum import LossOutput
from coordvlm.utils.errors import NonFiniteLossError


def refuse_non_finite(loss: LossOutput, ids: Sequence[int | str], *, step: int) -> None:
    """Raise before the optimiser step if any term is NaN or infinite. Waits for the device once.

    Args:
        loss: of one micro-batch. ids: its sample ids. step: for the message.
    Raises:
        NonFiniteLossError: naming each bad term and the samples whose items are not finite.
    """
    if bool(torch.isfinite(loss.total)):
        return
    bad = []
    for name, out in loss.outputs.items():
        if bool(torch.isfinite(out.sum)):
            continue
        where = "samples unknown"
        if out.per_item is not None and out.item_sample is not None:
            samples = torch.unique(out.item_sample[~torch.isfinite(out.per_item)]).tolist()
            where = "samples " + ", ".join(repr(ids[i]) for i in samples) if samples else "every item finite, their sum is not"
        bad.append(f"{name} = {float(out.sum.detach())} ({where})")
    shown = "; ".join(bad) or f"every term is finite, their weighted sum is {float(loss.total.detach())}"
    raise NonFiniteLossError(f"step {step}: the loss is not finite, stopped before the weights change: {shown}")
