"""Regression heads on chosen states of the language model. They live in ``Backbone.heads`` and stay float32 in a bfloat16 model.

Shapes: Q states, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from coordvlm.models.wide import AtLeastFloat32

#: Field of ``ModelOutput`` -> the head that gives it.
HEAD_OUTPUTS: Mapping[str, str] = {"box_head_end": "box_end", "box_head_start": "box_start"}
#: Heads that read a box off an answer, the one to be preferred first.
BOX_HEADS = ("box_end", "box_start")


class MLPHead(AtLeastFloat32):
    """Linear(D, D / 2), ReLU, Linear(D / 2, outputs), without autocast.

    Args:
        generator: of the initial weights (Xavier, uniform); biases start at 0.
    """

    def __init__(self, width: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width // 2), nn.Linear(width // 2, outputs)
        for layer in (self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden_QD: Tensor) -> Tensor:
        """float[Q, D] in any precision -> float32[Q, outputs]."""
        with torch.autocast(hidden_QD.device.type, enabled=False):
            return self.outer(torch.relu(self.inner(hidden_QD.to(self.inner.weight.dtype))))  # type: ignore[no-any-return]


class BoxHead(MLPHead):
    """One box per state. It learns centre and sides, through a sigmoid, so no box is ever inside out (as in DETR, arXiv:2005.12872)."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__(width, 4, generator)

    def forward(self, hidden_QD: Tensor) -> Tensor:
        """float32[Q, 4], normalised xyxy with x1 <= x2, y1 <= y2; a box may reach over the edge of the image by half its side."""
        box_Q4 = super().forward(hidden_QD).sigmoid()
        centre_Q2, side_Q2 = box_Q4[..., :2], box_Q4[..., 2:]
        return torch.cat((centre_Q2 - side_Q2 / 2, centre_Q2 + side_Q2 / 2), -1)


def build_heads(outputs: Collection[str], width: int, *, seed: int) -> nn.ModuleDict:
    """The heads that some fields of ``ModelOutput`` need; none for fields that come from tokens.

    Args:
        width: D. seed: of the initial weights, which do not depend on what else is random in a run.
    """
    names = sorted({HEAD_OUTPUTS[name] for name in outputs if name in HEAD_OUTPUTS})
    return nn.ModuleDict({name: BoxHead(width, torch.Generator().manual_seed(seed)) for name in names})
