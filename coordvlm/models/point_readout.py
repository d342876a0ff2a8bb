"""From what the heads give to one point per question.

Shapes: A questions, Nv image tokens, K coordinate bins. Points are normalised: [0, 1] across the image.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from coordvlm.contracts import Batch, ModelOutput
from coordvlm.coords import segments
from coordvlm.coords.readout import expectation

#: Read-out of a point -> the fields of ``ModelOutput`` it reads; in the order of preference.
POINT_NEEDS: Mapping[str, frozenset[str]] = {
    "spatial": frozenset({"token_next", "token_offset"}),
    "window": frozenset({"token_next", "token_offset"}),
    "heads": frozenset({"point_xy"}),
    "tokens": frozenset({"slot_logits"}),
}
#: Raw outputs of the regression heads are clamped to this in inference ([-1, 1] is the image).
_LIMIT = 2.0


def read_points(readout: str, output: ModelOutput, batch: Batch, *, bin_values: Tensor, window: int) -> Tensor:
    """float32[A, 2] in [0, 1], on the output's device.

    ``heads``: the x and y heads, clamped to [-2, 2] before. ``tokens``: the mean over coordinate bins at ``<x>`` and ``<y>``.
    ``spatial``: the image token with the highest score, plus its own offset: read hard, because a mean over the plane lies between
    two objects. ``window``: the mean, by score, over the tokens around that one.

    Args:
        batch: ``slot_row`` holds ``<x>`` and ``<y>`` of every question, where ``tokens`` are read.
        bin_values: float32[K], the coordinate of each bin. window: tokens each side, for ``window``.
    """
    if readout == "heads":
        assert output.point_xy is not None
        return (output.point_xy.clamp(-_LIMIT, _LIMIT) + 1) / 2
    if readout == "tokens":
        assert output.slot_logits is not None
        return expectation(output.slot_logits, bin_values).view(-1, 2)
    assert output.token_next is not None
    assert output.token_offset is not None
    place = batch.token_centre + output.token_offset.clamp(-1, 1) * batch.token_half
    best = _best_token(output.token_next, batch)
    if readout == "spatial":
        return (place[best] + 1) / 2
    reach = (window + 0.5) * 2 * batch.token_half[best][batch.token_ask]
    near = ((batch.token_centre - batch.token_centre[best][batch.token_ask]).abs() <= reach).all(-1)
    weight = torch.where(near, (output.token_next - output.token_next[best][batch.token_ask]).exp(), 0.0)
    number = len(batch.ask_row)
    total = torch.zeros(number, device=weight.device).index_add(0, batch.token_ask, weight)
    point = torch.zeros(number, 2, device=weight.device).index_add(0, batch.token_ask, place * weight[:, None])
    return (point / total[:, None] + 1) / 2


def _best_token(score: Tensor, batch: Batch) -> Tensor:
    """long[A]: the image token of each question with the highest score; the first one of equals."""
    return segments.argmax(score, batch.token_ask, len(batch.ask_row))
