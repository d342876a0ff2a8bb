"""Samples -> Encoded (in a worker) -> Batch. Positions are known here and handed on; nothing later looks for a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from coordvlm.contracts import COORD, END, Batch, Encoded, ResizeRule, Sample
from coordvlm.coords.grid import to_norm
from coordvlm.coords.vocab import CoordVocab
from coordvlm.sequence.positions import rope_positions
from coordvlm.sequence.prompt import PromptBuilder
from coordvlm.sequence.target import Target
from coordvlm.utils.errors import DataError

#: (image, declared width, declared height, where) -> (uint8[P, 3, ps, ps], (1, rows, columns))
ImageFn = Callable[[Path | Image.Image, int, int, object], tuple[NDArray[np.uint8], tuple[int, int, int]]]


class SequenceEncoder:
    """The ``contracts.Encoder`` of one contract.

    Args:
        prompt, target: prompt and answer of the sequence format. vocab: ids.
        resize: the contract's resize rule (its merge factor decides the number of image tokens).
        image_fn: opens, checks, resizes and patchifies an image (wired to ``data.images`` in ``build``).
        max_length: longest allowed prompt + answer.
    """

    def __init__(
        self, prompt: PromptBuilder, target: Target, vocab: CoordVocab, *, resize: ResizeRule, image_fn: ImageFn, max_length: int
    ) -> None:
        self.prompt, self.target, self.vocab, self.resize, self.image_fn, self.max_length = (
            prompt,
            target,
            vocab,
            resize,
            image_fn,
            max_length,
        )

    def encode(self, sample: Sample, *, epoch: int, with_answer: bool = True) -> Encoded:
        where = sample.meta.get("where", f"image {sample.id}")
        pixels, grid = self.image_fn(sample.image, sample.width, sample.height, where)
        prompt_ids = self.prompt.ids(grid[1] * grid[2] // self.resize.merge**2, sample.class_list, sample.phrase)
        seen = (grid[2] * self.resize.patch, grid[1] * self.resize.patch)
        answer = self.target.build(sample, epoch=epoch, model_size=seen) if with_answer else None
        length = len(prompt_ids) + (0 if answer is None else len(answer.ids))
        if length > self.max_length:
            raise DataError(
                f"prompt and answer must fit into {self.max_length} tokens (model.max_length); use a smaller resize or fewer objects",
                where=where,
                value=length,
            )
        empty = np.zeros(0, dtype=np.int64)
        return Encoded(
            id=sample.id,
            prompt_ids=prompt_ids,
            answer_ids=answer.ids if answer else empty,
            answer_kind=answer.kind if answer else empty.astype(np.uint8),
            slot_object=answer.slot_object if answer else empty,
            slot_axis=answer.slot_axis if answer else empty.astype(np.uint8),
            slot_bin=answer.slot_bin if answer else empty,
            slot_value=answer.slot_value if answer else empty.astype(np.float32),
            box_prev=answer.box_prev if answer else empty,
            pixels=pixels,
            grid_thw=grid,
            size=(sample.width, sample.height),
            num_dropped=answer.num_dropped if answer else 0,
            phrase=sample.phrase,
            query_box=_only_box(sample) if answer else None,
        )

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        return collate(encoded, self.vocab, merge=self.resize.merge)


def _only_box(sample: Sample) -> NDArray[np.float32] | None:
    """float32[4] in [0, 1] of a sample with exactly one object."""
    if len(sample.objects) != 1 or (box := sample.objects[0].box_xyxy_px) is None:
        return None
    return np.clip(to_norm(box, sample.width, sample.height), 0, 1).astype(np.float32)


def collate(encoded: Sequence[Encoded], vocab: CoordVocab, *, merge: int) -> Batch:
    """Right-padded batch; every ``*_row`` is the flat position that *predicts* the token. Ranges are checked here, on the CPU."""
    lengths = [len(e.prompt_ids) + len(e.answer_ids) for e in encoded]
    num, width = len(encoded), max(lengths)
    input_ids = np.full((num, width), vocab.pad_id, dtype=np.int64)
    positions = np.zeros((3, num, width), dtype=np.int64)
    text_row, text_target, text_end, slot_row, image_pos, box_slot, box_sample, box_prev = ([] for _ in range(8))
    num_slots = num_boxes = 0
    for b, e in enumerate(encoded):
        p = len(e.prompt_ids)
        input_ids[b, :p] = e.prompt_ids
        input_ids[b, p : lengths[b]] = e.answer_ids
        positions[:, b, : lengths[b]] = rope_positions(e.prompt_ids, lengths[b], vocab.image_id, e.grid_thw, merge)
        image_pos.append(np.flatnonzero(e.prompt_ids == vocab.image_id) + b * width)
        is_slot = e.answer_kind == COORD
        row = b * width + p - 1 + np.arange(len(e.answer_ids))
        text_row.append(row[~is_slot])
        text_target.append(e.answer_ids[~is_slot])
        text_end.append(e.answer_kind[~is_slot] == END)
        slot_row.append(row[is_slot])
        boxes = len(e.box_prev)
        box_slot.append(num_slots + np.arange(4 * boxes).reshape(-1, 4))
        box_sample.append(np.full(boxes, b))
        box_prev.append(np.where(e.box_prev >= 0, e.box_prev + num_boxes, -1))
        assert len(e.slot_bin) == int(is_slot.sum()) == 4 * boxes, f"sample {e.id}: slots, coordinates and boxes disagree"
        num_slots, num_boxes = num_slots + 4 * boxes, num_boxes + boxes
    queries = [b for b, e in enumerate(encoded) if e.query_box is not None]
    query_box = np.asarray([e.query_box for e in encoded if e.query_box is not None], dtype=np.float32).reshape(-1, 4)
    slot_bin = np.concatenate([e.slot_bin for e in encoded])
    slot_value = np.concatenate([e.slot_value for e in encoded])
    if len(slot_bin) and not (slot_bin.min() >= 0 and slot_bin.max() < vocab.num_bins):
        raise ValueError(f"slot bins must lie in [0, {vocab.num_bins}), got {slot_bin.min()} .. {slot_bin.max()}")
    if not np.isfinite(slot_value).all():
        raise ValueError("slot values must be finite")

    def long(parts: list[NDArray[np.int64]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return Batch(
        input_ids=torch.from_numpy(input_ids),
        lengths=torch.tensor(lengths),
        prompt_lengths=torch.tensor([len(e.prompt_ids) for e in encoded]),
        position_ids=torch.from_numpy(positions),
        image_pos=long(image_pos),
        pixels=torch.from_numpy(np.concatenate([e.pixels for e in encoded])),
        image_grid_thw=torch.tensor([e.grid_thw for e in encoded]),
        text_row=long(text_row),
        text_target=long(text_target),
        text_is_end=torch.from_numpy(np.concatenate(text_end).astype(np.bool_)),
        slot_row=long(slot_row),
        slot_bin=torch.from_numpy(slot_bin),
        slot_value=torch.from_numpy(slot_value),
        slot_axis=torch.from_numpy(np.concatenate([e.slot_axis for e in encoded])),
        box_slot=long([x.reshape(-1) for x in box_slot]).view(-1, 4),
        box_sample=long(box_sample),
        box_prev=long(box_prev),
        counts={"text": int(sum(len(x) for x in text_row)), "slot": num_slots, "box": num_boxes},
        ids=tuple(e.id for e in encoded),
        sizes=tuple(e.size for e in encoded),
        num_dropped=sum(e.num_dropped for e in encoded),
        phrases=tuple(e.phrase for e in encoded),
        query_row=torch.tensor([b * width + lengths[b] - 2 for b in queries], dtype=torch.long),
        query_box=torch.from_numpy(query_box),
        query_sample=torch.tensor(queries, dtype=torch.long),
    )
