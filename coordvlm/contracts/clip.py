"""Video clips: what a source gives, what the encoder makes of it, what the foveated model is handed, and the truth answers are scored on.

Shapes: B clips, T frames each, S side of a frame as the model sees it, L tokens of a sequence.

The sequence of a clip is ``[question] [mode] z_1 .. z_T [answer]``, one token z per frame. Questions are padded on the *left*, so that
mode, frames and the first token of the answer stand in the same columns in every clip of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coordvlm.contracts.batch import Batch
from coordvlm.contracts.sample import GroundTruth, Sample


def _no_frames() -> NDArray[np.uint8]:
    return np.zeros((0, 0, 0, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Clip(Sample):
    """A clip with a question and its answer. ``image`` is the last frame, ``phrase`` the question (``""`` where nothing is asked), and
    ``objects`` the one point that is asked for, in source pixels of the last frame; empty where the answer is words.

    Args:
        frames: uint8[T, height, width, 3], in the order of time.
        answer: in words; ``""`` where the answer is a point.
        kind: of question: ``qa``, ``cue``, ``global``, ``ball``, ``caption``.
        evidence: float32[T, 2], (x, y) in [0, 1] of the frame, of what answers the question; NaN in frames without. For diagnostics: no
            model sees it.
    """

    frames: NDArray[np.uint8] = field(default_factory=_no_frames)
    answer: str = ""
    kind: str = "caption"
    evidence: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.float32))

    @property
    def point_px(self) -> tuple[float, float] | None:
        """(x, y) of the answer in source pixels of the last frame; None where it is words."""
        return self.objects[0].point_px if self.objects else None


@dataclass(frozen=True)
class EncodedClip:
    """One tokenised clip, made in a worker.

    Args:
        id: the clip's id. kind: as in ``Clip``.
        question_ids: int64[q], what stands before the mode token; may be empty.
        answer_ids: int64[a], ends with the end-of-turn id; empty for a clip whose answer is to be decoded. answer_kind: uint8[a], TEXT,
            COORD or END.
        slot_bin: int64[n]. slot_value: float32[n] in [0, 1]; n is 2 (x, then y) where the answer is a point, else 0.
        frames: uint8[T, 3, S, S].
        size: (width, height) of the source frame.
        evidence: float32[T, 2] as in ``Clip``; NaN where unknown.
        source: the video that is shown; several questions may be asked about one.
    """

    id: int | str
    kind: str
    question_ids: NDArray[np.int64]
    answer_ids: NDArray[np.int64]
    answer_kind: NDArray[np.uint8]
    slot_bin: NDArray[np.int64]
    slot_value: NDArray[np.float32]
    frames: NDArray[np.uint8]
    size: tuple[int, int]
    evidence: NDArray[np.float32]
    question: str = ""
    num_dropped: int = 0
    source: str = ""


@dataclass(frozen=True)
class ClipBatch(Batch):
    """A ``Batch`` of clips. ``text_*`` and ``slot_*`` supervise the answer, ``image_pos`` are the positions of z (long[B * T], clip by
    clip), ``position_ids`` is long[B, L], ``prompt_lengths`` counts question, mode and frames, and ``ask_*`` (where the answer is a point)
    has all three rows at the token before the answer. Fields of patches and boxes are empty.

    Args:
        frames: uint8[B, T, 3, S, S].
        attention_mask: bool[B, L], False on padding.
        mode_col: the column of the mode token: the length of the longest question. Frames are at ``mode_col + 1 + t``.
        kinds: B kinds of question. evidence: float32[B, T, 2], (x, y) in [0, 1], NaN where unknown.
        sources: B videos, equal for questions about the same one.
    """

    frames: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 3, 0, 0, dtype=torch.uint8))
    attention_mask: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))
    mode_col: int = 0
    kinds: tuple[str, ...] = ()
    evidence: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 2))
    sources: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        """T."""
        return int(self.frames.shape[1])

    @property
    def answer_col(self) -> int:
        """The column of the first token of the answer."""
        return self.mode_col + 1 + self.num_frames


@dataclass(frozen=True)
class ClipTruth(GroundTruth):
    """The truth of questions about clips: each clip stands where an image stands in detection.

    ``image_ids`` are clip ids; an annotation is the point asked for, kept as a box without an area; clips answered in words have none.

    Args:
        questions, answers, kinds: I of each, as in ``Clip``. source_clip: int64[I], equal for questions on the same clip: what the
            bootstrap draws.
    """

    questions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    source_clip: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        num = len(self.image_ids)
        if not num == len(self.questions) == len(self.answers) == len(self.kinds) == len(self.source_clip):
            raise ValueError(f"{num} clips need as many questions, answers, kinds and sources")
        if len(np.unique(self.ann_image_id)) != len(self.ann_image_id):
            raise ValueError("a clip has one point or none")

    @property
    def source_image(self) -> NDArray[np.int64]:
        """int64[I], what the bootstrap draws."""
        return self.source_clip

    def point_of(self, clip_id: int) -> tuple[float, float] | None:
        """(x, y) of the answer in source pixels; None where it is words."""
        at = int(np.searchsorted(self.ann_image_id, clip_id))
        if at == len(self.ann_image_id) or self.ann_image_id[at] != clip_id:
            return None
        return float(self.ann_xyxy_px[at, 0]), float(self.ann_xyxy_px[at, 1])

    def subset(self, image_ids: Sequence[int]) -> ClipTruth:
        """The truth of some clips; an id that does not exist is a ``KeyError``."""
        kept = super().subset(image_ids)
        at = np.searchsorted(self.image_ids, kept.image_ids).tolist()
        values: dict[str, Any] = {f.name: getattr(kept, f.name) for f in fields(GroundTruth)}
        words: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in at) for name in ("questions", "answers", "kinds")}
        return ClipTruth(**values, **words, source_clip=self.source_clip[at])

    def digest(self) -> str:
        """12 hex digits that change with any value, words included."""
        sha = hashlib.sha256(super().digest().encode())
        for words in (self.questions, self.answers, self.kinds):
            sha.update("\0".join(words).encode("utf-8", "surrogatepass") + b"\1")
        sha.update(np.ascontiguousarray(self.source_clip).tobytes())
        return sha.hexdigest()[:12]

    @classmethod
    def of(
        cls, *, ids: Sequence[int], questions: Sequence[str], answers: Sequence[str], kinds: Sequence[str], source_clip: Sequence[int],
        sizes: Sequence[tuple[int, int]], points: Sequence[tuple[float, float] | None],
    ) -> ClipTruth:
        """From one row per clip, in any order. sizes: (width, height) in source pixels. points: of the answer; None where it is words."""
        order = np.argsort(np.asarray(ids, dtype=np.int64), kind="stable")
        sorted_ids = np.asarray(ids, dtype=np.int64)[order]
        found = [(i, p) for i, at in zip(sorted_ids.tolist(), order.tolist(), strict=True) if (p := points[at]) is not None]
        xy = np.asarray([p for _, p in found], dtype=np.float64).reshape(-1, 2)
        num, at_point = len(found), np.asarray([i for i, _ in found], dtype=np.int64)
        return cls(
            sorted_ids, np.asarray(sizes, dtype=np.float64).reshape(-1, 2)[order], np.ones(1, dtype=np.int64), ("answer",),
            at_point, at_point, np.ones(num, dtype=np.int64), np.concatenate((xy, xy), 1), np.zeros(num), np.zeros(num, dtype=np.bool_),
            questions=tuple(questions[i] for i in order.tolist()), answers=tuple(answers[i] for i in order.tolist()),
            kinds=tuple(kinds[i] for i in order.tolist()), source_clip=np.asarray(source_clip, dtype=np.int64)[order],
        )
