"""Weights in bfloat16 without giving up float32 where it matters.

Lightning's own ``bf16-true`` casts every parameter, target and input. Here only the parameters of the Hugging Face model are cast, and of
those none that trains beside an adapter: adapters, new-token rows, pixel normalisation, rotary frequencies (buffers), logsumexp and all
losses stay float32.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch.plugins import Precision
from torch import nn


class BFloat16Weights(Precision):
    """``trainer.precision=bf16-true``. Warns when more than the new-token rows trains: bf16 drops updates below 1/256 of a weight."""

    precision: Any = "bf16-true"

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Cast ``module.backbone.hf``, in place; a second call changes nothing."""
        backbone: Any = module.backbone
        cast_weights(backbone.hf, keep_trained=backbone.adapter is not None)
        return module


def cast_weights(hf: nn.Module, *, keep_trained: bool = False) -> None:
    """Floating-point parameters to bfloat16, in place; tied ones stay tied, buffers stay as they are.

    Args:
        keep_trained: leave those that train as they are: a few, beside an adapter's frozen base.
    """
    trained = 0
    for parameter in hf.parameters():
        if keep_trained and parameter.requires_grad:
            continue
        if parameter.is_floating_point() and parameter.dtype != torch.bfloat16:
            parameter.data = parameter.data.to(torch.bfloat16)
            trained += parameter.numel() if parameter.requires_grad else 0
    if trained:
        logging.getLogger(__name__).warning(
            f"trainer.precision=bf16-true trains {trained:,} bfloat16 weights: updates smaller than about 1/256 of a weight are lost; "
            "use bf16-mixed for full tuning, or freeze what should not train"
        )
