"""What the model hands to the losses, and what a loss term hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ModelOutput:
    """Only what was asked for (``needs``) is set; everything is float32.

    Shapes: R text rows, N slots, K coordinate bins, Q samples with exactly one target box, A samples that ask for
    a point, Nv image tokens.

    Args:
        text_nll: float32[R], ``lse(z) - z_target`` over all live columns.
        text_lse: float32[R], ``lse(z)``. text_coord_lse: float32[R], ``lse`` of the coordinate columns.
        text_correct: bool[R], no live column scores above the target. slot_correct: bool[N], likewise.
        slot_logits: float32[N, K], the coordinate columns in bin order.
        slot_lse: float32[N], ``lse(z)`` over all live columns.
        box_head_end, box_head_start: float32[Q, 4], the regression head's boxes as normalised xyxy, from the state that predicts the end
            of turn and from the one that predicts the first token of the answer.
        point_xy: float32[A, 2], the next object in [-1, 1] across the image, from the heads at ``<x>`` and ``<y>``; not clamped.
        done_logit: float32[A], from the head at ``<done>``.
        token_next, token_hit: float32[Nv], logits of each image token: it holds the next object (softmax over the image), it holds an
            unmarked object of the category. token_offset: float32[Nv, 2], from the cell's centre in half cells. The spatial read-out.
        frame_entropy: float32[F], of videos: entropy of each frame's attention over ln N, a mean over layers and heads.
        frame_features: [F, D], of videos: what each frame's query saw.
        latent: float32[F, C, h, w], the frame's latents as the model draws them; latent_true: what they are.
        head_output: outputs of further regression heads by name.
    """

    text_nll: Tensor | None = None
    text_lse: Tensor | None = None
    text_coord_lse: Tensor | None = None
    text_correct: Tensor | None = None
    slot_logits: Tensor | None = None
    slot_lse: Tensor | None = None
    slot_correct: Tensor | None = None
    box_head_end: Tensor | None = None
    box_head_start: Tensor | None = None
    point_xy: Tensor | None = None
    done_logit: Tensor | None = None
    token_next: Tensor | None = None
    token_hit: Tensor | None = None
    token_offset: Tensor | None = None
    frame_entropy: Tensor | None = None
    frame_features: Tensor | None = None
    latent: Tensor | None = None
    latent_true: Tensor | None = None
    head_output: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class TermOutput:
    """An unreduced loss term.

    Args:
        sum: 0-dim float32 with graph: the sum over the term's items (zero, but with graph, when there are none).
        logs: name -> (sum, count), detached; averaged by whoever logs.
        per_item: float32[items], detached, when the term can give it: names the samples of a non-finite loss.
        item_sample: which sample each item belongs to, long[items].
    """

    sum: Tensor
    logs: Mapping[str, tuple[Tensor, int]]
    per_item: Tensor | None = None
    item_sample: Tensor | None = None
