"""What the collator hands to the model. Every position a loss, a probe or a head needs is an index here.

Shapes: B samples, T tokens (right-padded), R supervised non-coordinate tokens, N supervised coordinate slots, M boxes,
I images, P vision patches before merging, Nv image tokens after merging, Q samples with exactly one target box.

**Every ``*_row`` is the flat position b*T + t that predicts the token, i.e. the token itself sits at t + 1.**
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Kind of an answer token (``Encoded.answer_kind``).
TEXT, MARKER, COORD, END = 0, 1, 2, 3


@dataclass(frozen=True)
class Encoded:
    """One tokenised sample, made in a worker. Prompt and answer are separate; nothing searches for their border.

    Args:
        id: the sample's id.
        prompt_ids: int64[p], image already expanded, generation prompt added.
        answer_ids: int64[a], ends with the end-of-turn id; empty for a prompt to decode.
        answer_kind: uint8[a], one of TEXT, MARKER, COORD, END.
        slot_object: int64[n], for each COORD the index of its box in this sample, in answer order.
        slot_axis: uint8[n], 0..3 for x1, y1, x2, y2.
        slot_bin: int64[n]. slot_value: float32[n], the unquantised coordinate in [0, 1].
        box_prev: int64[m], index of the preceding box of the sample if it has the same description, else -1.
        pixels: uint8[p, 3, ps, ps], patches in the order the vision tower reads them.
        grid_thw: (1, patch rows, patch columns).
        size: (width, height) of the displayed source image.
        num_dropped: objects left out of the target by ``max_objects`` or ``on_error=skip``.
        phrase: the referring phrase; None in detection.
        query_box: float32[4], normalised xyxy, of a sample with exactly one target box and an answer; else None. For regression heads,
            in every format.
    """

    id: int | str
    prompt_ids: NDArray[np.int64]
    answer_ids: NDArray[np.int64]
    answer_kind: NDArray[np.uint8]
    slot_object: NDArray[np.int64]
    slot_axis: NDArray[np.uint8]
    slot_bin: NDArray[np.int64]
    slot_value: NDArray[np.float32]
    box_prev: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    grid_thw: tuple[int, int, int]
    size: tuple[int, int]
    num_dropped: int = 0
    phrase: str | None = None
    query_box: NDArray[np.float32] | None = None


def _no_rows() -> Tensor:
    return torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class Window:
    """The accumulation window (one optimiser step) a micro-batch belongs to; attached by the loader.

    Args:
        index: position of this micro-batch in its window. size: micro-batches in this window (a last window may be short).
        counts: items of each normaliser group over the whole window on this rank.
        accumulate: the divisor the trainer applies (``accumulate_grad_batches``), also in a short window.
    """

    index: int
    size: int
    counts: Mapping[str, int]
    accumulate: int = 1


@dataclass(frozen=True)
class Batch:
    """See the module docstring for shapes. Index ranges are checked on the CPU by the collator, never on the device.

    Args:
        input_ids: long[B, T], right-padded. lengths: long[B]. prompt_lengths: long[B].
        position_ids: long[3, B, T], M-RoPE (temporal, height, width).
        image_pos: long[Nv], flat position of every image token, in the order of the vision features.
        pixels: uint8[P, 3, ps, ps]. image_grid_thw: long[I, 3], one image per sample.
        text_row, text_target: long[R]. text_is_end: bool[R], True at the end-of-turn token.
        slot_row, slot_bin: long[N]. slot_value: float32[N] in [0, 1], unquantised. slot_axis: uint8[N].
        box_slot: long[M, 4], the slots x1, y1, x2, y2 of a box. box_sample: long[M]. box_prev: long[M], the preceding box of
            the sample (index into M) if it has the same description, else -1.
        counts: ``{"text": R, "slot": N, "box": M}``, from labels.
        ids: B sample ids. sizes: B (width, height) of the displayed source image. phrases: B referring phrases, None in detection.
        window: set by the training loader; None elsewhere.
        query_row: long[Q], predicts the end of turn. query_box: float32[Q, 4], normalised xyxy, not quantised. query_sample: long[Q].
    """

    input_ids: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    position_ids: Tensor
    image_pos: Tensor
    pixels: Tensor
    image_grid_thw: Tensor
    text_row: Tensor
    text_target: Tensor
    text_is_end: Tensor
    slot_row: Tensor
    slot_bin: Tensor
    slot_value: Tensor
    slot_axis: Tensor
    box_slot: Tensor
    box_sample: Tensor
    box_prev: Tensor
    counts: Mapping[str, int]
    ids: tuple[int | str, ...]
    sizes: tuple[tuple[int, int], ...]
    window: Window | None = None
    num_dropped: int = field(default=0)
    phrases: tuple[str | None, ...] = ()
    query_row: Tensor = field(default_factory=_no_rows)
    query_box: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    query_sample: Tensor = field(default_factory=_no_rows)

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        moved: dict[str, Any] = {f.name: fn(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **moved)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with its tensors on ``device``; dtypes stay."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._map(lambda x: x.pin_memory())
