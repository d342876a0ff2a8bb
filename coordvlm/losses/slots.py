"""What a loss term reads: the model's output, the batch's labels and the decoded coordinates, side by side.

Shapes: R text rows, N slots, M boxes, K bins, T tokens, A questions, Nv image tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from coordvlm.contracts.batch import Batch
from coordvlm.contracts.output import ModelOutput
from coordvlm.losses.coord_exp import CoordExp


def _samples_of_rows(rows: Tensor, batch: Batch) -> Tensor:
    return torch.div(rows, batch.input_ids.shape[1], rounding_mode="floor")


def _clip_of_frames(batch: Batch) -> Tensor:
    """long[F], the clip of every frame; ``image_pos`` holds one position per frame there."""
    return _samples_of_rows(batch.image_pos, batch)


def _counted(name: str) -> Callable[[Batch], int]:
    """Counts that depend on values: the collator took them on the CPU. A batch without questions has none."""
    return lambda batch: batch.counts.get(name, 0)


#: Kind of item -> (how many the batch holds, known without the device; the sample each belongs to, long[items]). Of questions and image
#: tokens all are listed: those that do not count have a loss of 0.
ITEMS: dict[str, tuple[Callable[[Batch], int], Callable[[Batch], Tensor]]] = {
    "text": (lambda b: b.text_row.shape[0], lambda b: _samples_of_rows(b.text_row, b)),
    "slot": (lambda b: b.slot_row.shape[0], lambda b: _samples_of_rows(b.slot_row, b)),
    "box": (lambda b: b.box_slot.shape[0], lambda b: b.box_sample),
    "query": (lambda b: b.query_row.shape[0], lambda b: b.query_sample),
    "point": (_counted("point"), lambda b: b.ask_sample),
    "done": (_counted("done"), lambda b: b.ask_sample),
    "image_token": (_counted("image_token"), lambda b: b.ask_sample[b.token_ask]),
    "hit": (_counted("hit"), lambda b: b.ask_sample[b.token_ask]),
    "frame": (_counted("frame"), _clip_of_frames),
    "latent": (_counted("latent"), _clip_of_frames),
}
#: Kinds of item of samples with an answer in words (detection, grounding), of clips, and of samples that ask for a point (counting).
ANSWER_ITEMS = ("text", "slot", "box", "query")
CLIP_ITEMS = ("text", "slot", "point", "frame", "latent")
QUESTION_ITEMS = ("slot", "point", "done", "image_token", "hit")


@dataclass(frozen=True, eq=False)
class Slots:
    """One micro-batch as the terms see it. Reading a field that the model was not asked for is a ``ValueError``.

    Args:
        output: what the model gave. batch: labels and indices. decode: how slots become coordinates; None if no term asks.
    """

    output: ModelOutput
    batch: Batch
    decode: CoordExp | None = None

    def _given(self, name: str) -> Tensor:
        value = getattr(self.output, name)
        if not isinstance(value, Tensor):
            raise ValueError(f"ModelOutput.{name} is not set: a term reads it without naming it in `needs`, or the model ignored `needs`")
        return value

    @property
    def text_nll(self) -> Tensor:
        return self._given("text_nll")

    @property
    def text_lse(self) -> Tensor:
        return self._given("text_lse")

    @property
    def text_coord_lse(self) -> Tensor:
        return self._given("text_coord_lse")

    @property
    def slot_logits(self) -> Tensor:
        return self._given("slot_logits")

    @property
    def slot_lse(self) -> Tensor:
        return self._given("slot_lse")

    def box_head(self, at: str) -> Tensor:
        """float[Q, 4] boxes of the regression head, normalised xyxy; ``at``: ``end`` or ``start``."""
        return self._given(f"box_head_{at}")

    @property
    def point_xy(self) -> Tensor:
        return self._given("point_xy")

    @property
    def done_logit(self) -> Tensor:
        return self._given("done_logit")

    @property
    def token_next(self) -> Tensor:
        return self._given("token_next")

    @property
    def token_hit(self) -> Tensor:
        return self._given("token_hit")

    @property
    def token_offset(self) -> Tensor:
        return self._given("token_offset")

    @property
    def frame_entropy(self) -> Tensor:
        return self._given("frame_entropy")

    @property
    def frame_features(self) -> Tensor:
        return self._given("frame_features")

    @property
    def latent(self) -> Tensor:
        return self._given("latent")

    @property
    def latent_true(self) -> Tensor:
        return self._given("latent_true")

    @property
    def slot_bin(self) -> Tensor:
        """long[N] target bins."""
        return self.batch.slot_bin

    @property
    def slot_value(self) -> Tensor:
        """float32[N] unquantised target coordinates in [0, 1]."""
        return self.batch.slot_value

    @cached_property
    def coords(self) -> Tensor:
        """float[N] decoded coordinates in [0, 1], with graph. Decoded once, shared by all terms."""
        if self.decode is None:
            raise ValueError("a term reads decoded coordinates, but says `decodes = False` or the recipe has no `decode`")
        decoded: Tensor = self.decode(self.slot_logits)
        return decoded

    @property
    def boxes(self) -> Tensor:
        """float[M, 4] decoded boxes, raw: corners may be crossed."""
        return self.coords[self.batch.box_slot]

    @property
    def true_boxes(self) -> Tensor:
        """float[M, 4] unquantised target boxes in the precision of ``boxes``, normalised xyxy."""
        return self.slot_value[self.batch.box_slot].to(self.coords.dtype)

    def number_of(self, items: str) -> int:
        """How many of a kind of item the batch holds."""
        return ITEMS[items][0](self.batch)

    def sample_of(self, items: str) -> Tensor:
        """long[items], which sample of the batch each item belongs to."""
        return ITEMS[items][1](self.batch)
