"""Clips -> EncodedClip -> ClipBatch: questions padded on the left, answers on the right, frames between them in the same columns.

Shapes: B clips, T frames, S side of a frame for the model, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import COORD, END, TEXT, Clip, ClipBatch, EncodedClip, Sample
from coordvlm.coords.grid import Digits, Grid, to_norm
from coordvlm.coords.vocab import CoordVocab
from coordvlm.utils.errors import ConfigError, DataError


@dataclass(frozen=True)
class ClipPrompt:
    """The text before the frames. ``text``: with ``{question}``; a clip that asks nothing has none."""

    tokenizer: PreTrainedTokenizerBase
    text: str

    def __post_init__(self) -> None:
        if "{question}" not in self.text:
            raise ConfigError(f"sequence.prompt must contain {{question}}, got {self.text!r}")

    def prompt_text(self, question: str) -> str:
        return self.text.format(question=question) if question else ""

    def ids(self, question: str) -> NDArray[np.int64]:
        """int64[q]; empty where nothing is asked."""
        text = self.prompt_text(question)
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False) if text else [], dtype=np.int64)


class ClipEncoder:
    """The ``contracts.Encoder`` of clips.

    Args:
        tokenizer: of the language model. vocab: its ids. grid: of coordinates.
        prompt: text with ``{question}``. num_frames: T. size: S, side of a frame as the model sees it; frames of another size are resized.
        max_length: tokens of question, frames and answer, at most.
    Raises:
        ConfigError: a grid without bins (answers that are points are coordinate tokens or heads).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab: CoordVocab, grid: Grid | Digits, *, prompt: str, num_frames: int, size: int,
        max_length: int,
    ) -> None:
        if not isinstance(grid, Grid):
            raise ConfigError(f"sequence=clip writes points as coordinate tokens: coords={grid.name} has no bins; use coords=k999 or k1000")
        self.tokenizer, self.vocab, self.grid = tokenizer, vocab, grid
        self.prompt = ClipPrompt(tokenizer, prompt)
        self.num_frames, self.size, self.max_length = int(num_frames), int(size), int(max_length)

    def encode(self, sample: Sample, *, epoch: int, with_answer: bool = True) -> EncodedClip:
        """One clip.

        Raises:
            DataError: another number of frames than the model reads, no answer, a point outside the frame, a sequence that is too long.
        """
        assert isinstance(sample, Clip), "this encoder is for clips"
        where = sample.meta.get("where", sample.id)
        if len(sample.frames) != self.num_frames:
            raise DataError(f"a clip must have {self.num_frames} frames", where=where, value=len(sample.frames))
        question = self.prompt.ids(sample.phrase or "")
        answer, kind = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint8)
        value = np.zeros(0, dtype=np.float32)
        if with_answer:
            answer, kind, value = self._answer(sample, where)
        length = len(question) + 1 + self.num_frames + len(answer)
        if length > self.max_length:
            raise DataError(f"question, frames and answer must have at most {self.max_length} tokens", where=where, value=length)
        return EncodedClip(
            id=sample.id, kind=sample.kind, question_ids=question, answer_ids=answer, answer_kind=kind, slot_bin=self.grid.encode(value),
            slot_value=value, frames=self._frames(sample), size=(sample.width, sample.height), evidence=sample.evidence,
            question=sample.phrase or "", source=str(sample.meta.get("file_name", sample.id)),
        )

    def _answer(self, clip: Clip, where: object) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float32]]:
        if (point := clip.point_px) is not None:
            x, y = point
            if not (0 <= x <= clip.width and 0 <= y <= clip.height):
                raise DataError(f"the point must lie within {clip.width} x {clip.height} px", where=where, value=(x, y))
            value = to_norm(np.asarray([x, y]), clip.width, clip.height).astype(np.float32)
            ids = [*self.vocab.coord_ids[self.grid.encode(value)].tolist(), self.vocab.end_id]
            return np.asarray(ids), np.asarray([COORD, COORD, END], dtype=np.uint8), value
        if not clip.answer:
            raise DataError("a clip needs an answer: words or a point", where=where, value=clip.answer)
        words = self.tokenizer.encode(clip.answer, add_special_tokens=False)
        if self.vocab.end_id in words:
            raise DataError("an answer must not contain the end-of-turn token", where=where, value=clip.answer)
        kind = np.full(len(words) + 1, TEXT, dtype=np.uint8)
        kind[-1] = END
        return np.asarray([*words, self.vocab.end_id]), kind, np.zeros(0, dtype=np.float32)

    def _frames(self, clip: Clip) -> NDArray[np.uint8]:
        """uint8[T, 3, S, S]; frames that are not square lose their aspect, as coordinates are relative to the sides."""
        frames = clip.frames
        if frames.shape[1:3] != (self.size, self.size):
            small = [Image.fromarray(f).resize((self.size, self.size), Image.Resampling.BICUBIC) for f in frames]
            frames = np.stack([np.asarray(f) for f in small])
        return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))

    def collate(self, encoded: Sequence[EncodedClip]) -> ClipBatch:
        return collate_clips(encoded, self.vocab, num_frames=self.num_frames)


def collate_clips(encoded: Sequence[EncodedClip], vocab: CoordVocab, *, num_frames: int) -> ClipBatch:
    """See ``ClipBatch``; every ``*_row`` is the flat position that *predicts* the token."""
    num, mode_col = len(encoded), max(len(e.question_ids) for e in encoded)
    start = mode_col + 1 + num_frames
    width = start + max(len(e.answer_ids) for e in encoded)
    input_ids = np.full((num, width), vocab.pad_id, dtype=np.int64)
    mask = np.zeros((num, width), dtype=np.bool_)
    text_row, text_target, text_end, slot_row = ([] for _ in range(4))
    for b, e in enumerate(encoded):
        q, a = len(e.question_ids), len(e.answer_ids)
        input_ids[b, mode_col - q : mode_col] = e.question_ids
        input_ids[b, mode_col:start] = vocab.image_id
        input_ids[b, start : start + a] = e.answer_ids
        mask[b, mode_col - q : start + a] = True
        row = b * width + start - 1 + np.arange(a)
        is_slot = e.answer_kind == COORD
        assert int(is_slot.sum()) == len(e.slot_bin), f"clip {e.id}: slots and coordinates disagree"
        text_row.append(row[~is_slot])
        text_target.append(e.answer_ids[~is_slot])
        text_end.append(e.answer_kind[~is_slot] == END)
        slot_row.append(row[is_slot])
    slot_bin = np.concatenate([e.slot_bin for e in encoded])
    slot_value = np.concatenate([e.slot_value for e in encoded])
    if len(slot_bin) and not (slot_bin.min() >= 0 and slot_bin.max() < vocab.num_bins):
        raise ValueError(f"slot bins must lie in [0, {vocab.num_bins}), got {slot_bin.min()} .. {slot_bin.max()}")
    pointed = [b for b, e in enumerate(encoded) if len(e.slot_value)]
    points = slot_value.reshape(-1, 2)

    def long(parts: Sequence[NDArray[np.int64]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    asked = torch.tensor(pointed, dtype=torch.long)
    return ClipBatch(
        input_ids=torch.from_numpy(input_ids),
        lengths=torch.from_numpy(mask.sum(1)),
        prompt_lengths=torch.tensor([len(e.question_ids) + 1 + num_frames for e in encoded]),
        position_ids=torch.from_numpy(np.maximum(np.cumsum(mask, 1) - 1, 0)),
        image_pos=torch.arange(num)[:, None].mul(width).add(mode_col + 1 + torch.arange(num_frames)).flatten(),
        pixels=torch.zeros(0, 3, 0, 0, dtype=torch.uint8),
        image_grid_thw=torch.zeros(0, 3, dtype=torch.long),
        text_row=long(text_row),
        text_target=long(text_target),
        text_is_end=torch.from_numpy(np.concatenate(text_end).astype(np.bool_)),
        slot_row=long(slot_row),
        slot_bin=torch.from_numpy(slot_bin),
        slot_value=torch.from_numpy(slot_value),
        slot_axis=torch.tensor([0, 1] * len(pointed), dtype=torch.uint8),
        box_slot=torch.zeros(0, 4, dtype=torch.long),
        box_sample=torch.zeros(0, dtype=torch.long),
        box_prev=torch.zeros(0, dtype=torch.long),
        counts={
            "text": int(sum(len(x) for x in text_row)), "slot": len(slot_bin), "box": 0, "point": len(pointed), "frame": num * num_frames,
            "latent": num * num_frames,
        },
        ids=tuple(e.id for e in encoded),
        sizes=tuple(e.size for e in encoded),
        phrases=tuple(e.question for e in encoded),
        ask_row=(asked * width + start - 1)[:, None].expand(-1, 3).contiguous(),
        ask_sample=asked,
        ask_xy=torch.from_numpy((2 * points - 1).astype(np.float32)),
        ask_has_xy=torch.ones(len(pointed), dtype=torch.bool),
        frames=torch.from_numpy(np.stack([e.frames for e in encoded])),
        attention_mask=torch.from_numpy(mask),
        mode_col=mode_col,
        kinds=tuple(e.kind for e in encoded),
        sources=tuple(e.source for e in encoded),
        evidence=torch.from_numpy(np.stack([e.evidence for e in encoded])),
    )
