"""Losses of the spatial head: which image token holds the next object, which hold any, and where in its cell an object lies.

The last two are the dense helper: every image token has an answer to learn, in every question.

Shapes: A questions, Nv image tokens. Offsets are in half cells, from the cell's centre.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from coordvlm.contracts.batch import Batch
from coordvlm.contracts.output import TermOutput
from coordvlm.coords import segments
from coordvlm.coords.readout import upcast
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm, positive
from coordvlm.losses.three_stage import UNITS

#: Pixels of 384 that 1 on the [-1, 1] scale makes up.
_HALF_SIDE = UNITS["px384"]


def token_next_ce(score_V: Tensor, true_V: Tensor, ask_V: Tensor, asks_A: Tensor) -> Tensor:
    """``-log`` of the probability on the true tokens, under a softmax over all image tokens of the question.

    With several true tokens any split of the mass between them is as good as another.

    Args:
        score_V: float[Nv]. true_V: bool[Nv]. ask_V: long[Nv], the question of each. asks_A: bool[A], whether there is a next object.
    Returns:
        float32[A] (float64 for float64 scores), nats, >= 0, unreduced; 0 where nothing is asked, infinite where the true token is missing.
    """
    score_V, num = upcast(score_V), len(asks_A)
    every_A = segments.logsumexp(score_V, ask_V, num, empty=0.0)
    true_A = segments.logsumexp(score_V.masked_fill(~true_V, -torch.inf), ask_V, num, empty=-torch.inf)
    return torch.where(asks_A, every_A, 0.0) - torch.where(asks_A, true_A, 0.0)


def hard_points(score_V: Tensor, offset_V2: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """long[A], the image token of each question with the highest score, and float[A, 2], its own offset from its centre in [-1, 1]."""
    best_A = segments.argmax(score_V, batch.token_ask, len(batch.ask_row))
    best_A = best_A.clamp(max=len(score_V) - 1)  # scores that are no number have no highest one
    return best_A, (batch.token_centre + offset_V2 * batch.token_half)[best_A]


class TokenNextCE(LossTerm):
    """Sums ``token_next_ce`` over the questions of ``ask_has_xy``.

    Logs ``next_acc``, how often the token with the highest score is a true one, and ``next_px384``: how far its centre and own offset lie
    from the closest true object, in pixels of an image of 384 x 384.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"token_next", "token_offset"})
    items: ClassVar[str] = "point"

    def forward(self, slots: Slots) -> TermOutput:
        batch, asks_A, ask_V = slots.batch, slots.batch.ask_has_xy, slots.batch.token_ask
        score_V, offset_V2 = upcast(slots.token_next), upcast(slots.token_offset)
        loss_A = token_next_ce(score_V, batch.token_next, ask_V, asks_A)
        with torch.no_grad():
            best_A, point_A2 = hard_points(score_V, offset_V2, batch)
            right_A = batch.token_next[best_A] & asks_A
            there_V2 = batch.token_centre + batch.token_offset * batch.token_half
            px_V = torch.linalg.vector_norm(point_A2[ask_V] - there_V2, dim=-1) * _HALF_SIDE
            far_A = torch.full_like(loss_A, torch.inf)
            px_A = far_A.scatter_reduce(0, ask_V, px_V.masked_fill(~batch.token_next, torch.inf).to(loss_A.dtype), "amin")
            px = torch.where(asks_A, px_A, 0.0).sum()
        number = slots.number_of("point")
        return self.summed(loss_A, slots, {"next_acc": (right_A.sum().to(loss_A.dtype), number), "next_px384": (px, number)})


class TokenHitBCE(LossTerm):
    """Sums over the image tokens of ``ask_has_hit`` the cross-entropy of "an unmarked object of the category lies in this cell".

    Logs ``hit_recall``, the share of tokens with an object that are told so (p > 0.5), and ``hit_false``, the share of the others that are.

    Args:
        positive_weight: factor on the loss of tokens with an object, > 0; 1 leaves the probabilities calibrated.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"token_hit"})
    items: ClassVar[str] = "image_token"

    def __init__(self, *, positive_weight: float) -> None:
        super().__init__()
        self.positive_weight = positive("token_hit_bce", "positive_weight", positive_weight)

    def forward(self, slots: Slots) -> TermOutput:
        logit_V = upcast(slots.token_hit)
        hit_V = slots.batch.token_hit.to(logit_V.dtype)
        loss_V = functional.binary_cross_entropy_with_logits(logit_V, hit_V, reduction="none")
        known_V = slots.batch.ask_has_hit[slots.batch.token_ask]
        loss_V = torch.where(known_V, loss_V * (1 + (self.positive_weight - 1) * hit_V), 0.0)
        said_V = ((logit_V.detach() > 0) & known_V).to(hit_V.dtype)
        hits, tokens = slots.number_of("hit"), slots.number_of("image_token")
        logs = {"hit_recall": ((said_V * hit_V).sum(), hits), "hit_false": ((said_V * (1 - hit_V)).sum(), tokens - hits)}
        return self.summed(loss_V, slots, logs)


class TokenOffset(LossTerm):
    """Sums smooth L1 of the offset, over x and y, of the image tokens that hold an object; logs ``offset_px384``, their mean distance.

    Args:
        beta: border between square and straight line, in half cells, > 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"token_offset"})
    items: ClassVar[str] = "hit"

    def __init__(self, *, beta: float) -> None:
        super().__init__()
        self.beta = positive("token_offset", "beta", beta)

    def forward(self, slots: Slots) -> TermOutput:
        batch, found_V2 = slots.batch, upcast(slots.token_offset)
        true_V2, hit_V = batch.token_offset.to(found_V2.dtype), batch.token_hit > 0
        loss_V = functional.smooth_l1_loss(found_V2, true_V2, reduction="none", beta=self.beta).sum(-1)
        apart_V2 = (found_V2.detach() - true_V2) * batch.token_half.to(found_V2.dtype)
        px_V = torch.where(hit_V, torch.linalg.vector_norm(apart_V2, dim=-1) * _HALF_SIDE, 0.0)
        return self.summed(torch.where(hit_V, loss_V, 0.0), slots, {"offset_px384": (px_V.sum(), slots.number_of("hit"))})
