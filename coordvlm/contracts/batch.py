"""What the collator hands to the model. Every position a loss, a probe or a head needs is an index here.

Shapes: B samples, T tokens (right-padded), R supervised non-coordinate tokens, N supervised coordinate slots, M boxes,
I images, P vision patches before merging, Nv image tokens after merging, Q samples with exactly one target box, A samples that ask for a
point (counting: all of them).

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
class Question:
    """One step of sequential counting: k objects are marked in the image, where is the next one, or are all marked?

    All points are normalised to [0, 1] of the frame that the image was made from (after augmentation).

    Args:
        category: what is counted. num: N, how many there are; k where that is not known. marked: k, how many of them count as marked.
        target: float32[2] of the next object; None: all are marked, or nothing is known (a step of the inference loop).
        unmarked: float32[N - k, 2], all objects that are not marked yet, the target included; empty where nothing is known.
        done: whether all are marked; None: nothing is known, or it is not taught.
        rows: int64[3], where ``<x> <y> <done>`` stand in ``prompt_ids``.
        known: whether ``unmarked`` is the truth: without it, nothing is supervised.
    """

    category: str
    num: int
    marked: int
    target: NDArray[np.float32] | None
    unmarked: NDArray[np.float32]
    done: bool | None
    rows: NDArray[np.int64]
    known: bool = True


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
        question: what is asked for in task=count; None in other tasks.
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
    question: Question | None = None


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
        counts: ``{"text": R, "slot": N, "box": M}``, from labels; in task=count also ``"point"`` (of ``ask_has_xy``), ``"done"`` (of
            ``ask_has_done``), ``"image_token"`` (of ``ask_has_hit``) and ``"hit"`` (image tokens with an unmarked object).
        ids: B sample ids. sizes: B (width, height) of the displayed source image. phrases: B referring phrases, None in detection.
        window: set by the training loader; None elsewhere.
        query_row: long[Q], predicts the end of turn. query_box: float32[Q, 4], normalised xyxy, not quantised. query_sample: long[Q].
        ask_row: long[A, 3], flat positions b*T + t of the tokens ``<x> <y> <done>`` themselves, whose states feed the heads (the one
            ``*_row`` that predicts nothing). ask_sample: long[A].
        ask_xy: float32[A, 2], the next object in [-1, 1] across the image; 0 where there is none. ask_has_xy: bool[A]. Slots x and y of
            those samples, and of no others, are in ``slot_*``, read at ``<x>`` and ``<y>``.
        ask_done: float32[A], 1 where everything is marked. ask_has_done: bool[A], whether the done head learns from the sample.
        ask_has_hit: bool[A], whether it is known which objects are unmarked, so that ``token_hit`` says something.
        token_ask: long[Nv], the question (index into A) of each image token's sample. token_centre, token_half: float32[Nv, 2], centre
            and half size of the image's cell behind each token in [-1, 1] across the image. All empty in other tasks.
        token_hit: float32[Nv], 1 where an unmarked object of the category lies in the cell. token_offset: float32[Nv, 2], from centre to
            object in half cells, so within [-1, 1]; of the target, or the first in order, where there are several; 0 without.
        token_next: bool[Nv], the target lies in the cell: one token of each sample of ``ask_has_xy``. Where any unmarked object is a right
            answer (``sequence.target=nearest``): every token with one, so ``token_hit`` of those samples.
        questions: A questions as they were asked, for whoever reads the answers.
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
    ask_row: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.long))
    ask_sample: Tensor = field(default_factory=_no_rows)
    ask_xy: Tensor = field(default_factory=lambda: torch.zeros(0, 2))
    ask_has_xy: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    ask_done: Tensor = field(default_factory=lambda: torch.zeros(0))
    ask_has_done: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    ask_has_hit: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    token_ask: Tensor = field(default_factory=_no_rows)
    token_centre: Tensor = field(default_factory=lambda: torch.zeros(0, 2))
    token_half: Tensor = field(default_factory=lambda: torch.zeros(0, 2))
    token_hit: Tensor = field(default_factory=lambda: torch.zeros(0))
    token_offset: Tensor = field(default_factory=lambda: torch.zeros(0, 2))
    token_next: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    questions: tuple[Question, ...] = ()

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
