"""Questions -> Batch: where the three tokens stand, what they are asked, and what lies behind each image token.

Shapes: A questions (one per sample), Nv image tokens, n image tokens of one sample in ``rows`` x ``columns``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from coordvlm.contracts import Batch, Encoded, Question
from coordvlm.coords.grid import Grid
from coordvlm.coords.vocab import CoordVocab
from coordvlm.sequence.collate import collate


@dataclass(frozen=True)
class Cells:
    """The image as its tokens see it; token i is cell (i // columns, i % columns), because patches come in merge blocks row by row.

    Args:
        centre, half: float32[n, 2], in [-1, 1] across the image. hit: float32[n]. offset: float32[n, 2]. next: bool[n]; see ``Batch``.
    """

    centre: NDArray[np.float32]
    half: NDArray[np.float32]
    hit: NDArray[np.float32]
    offset: NDArray[np.float32]
    next: NDArray[np.bool_]


def cells_of(question: Question, rows: int, columns: int, *, any_unmarked: bool) -> Cells:
    """What lies in the cells of one image. A point on the border of two cells is in the one after it, but for the image's last ones.

    Args:
        any_unmarked: every unmarked object is a right answer, not the target alone.
    """
    shape = np.asarray([columns, rows], dtype=np.float64)
    index = np.stack((np.tile(np.arange(columns), rows), np.repeat(np.arange(rows), columns)), 1)
    centre = (2 * index + 1) / shape - 1
    half = np.broadcast_to(1 / shape, centre.shape)
    hit, offset, following = np.zeros(len(index)), np.zeros((len(index), 2)), np.zeros(len(index), dtype=np.bool_)
    points = question.unmarked.astype(np.float64).reshape(-1, 2)
    if len(points):
        at = np.clip(np.floor(points * shape), 0, shape - 1).astype(np.int64)
        cell = at[:, 1] * columns + at[:, 0]
        hit[cell] = 1
        # assigned backwards: of several objects in a cell the first one, which is the target if it is there, stays
        offset[cell[::-1]] = ((2 * points - 1 - centre[cell]) / half[cell])[::-1]
        if question.target is not None:
            following[cell if any_unmarked else cell[:1]] = True
    return Cells(centre.astype(np.float32), half.astype(np.float32), hit.astype(np.float32), offset.astype(np.float32), following)


def collate_questions(encoded: Sequence[Encoded], vocab: CoordVocab, grid: Grid, *, merge: int, any_unmarked: bool) -> Batch:
    """A batch of questions; slots x and y of those with a target are read at ``<x>`` and ``<y>``."""
    plain = collate(encoded, vocab, merge=merge)
    width = plain.input_ids.shape[1]
    questions = []
    for e in encoded:
        assert e.question is not None, f"sample {e.id} asks nothing"
        questions.append(e.question)
    ask_row = np.stack([b * width + q.rows for b, q in enumerate(questions)])
    has_xy = np.asarray([q.target is not None for q in questions])
    target = np.stack([np.zeros(2, dtype=np.float32) if q.target is None else q.target for q in questions])
    if not (np.isfinite(target).all() and (target >= 0).all() and (target <= 1).all()):
        raise ValueError("targets must lie in [0, 1] across the image")
    cells = [
        cells_of(q, e.grid_thw[1] // merge, e.grid_thw[2] // merge, any_unmarked=any_unmarked)
        for e, q in zip(encoded, questions, strict=True)
    ]
    value = target[has_xy].reshape(-1)
    has_done = [q.done is not None for q in questions]
    hit = np.concatenate([c.hit for c in cells])
    known = sum(len(c.hit) for c, q in zip(cells, questions, strict=True) if q.known)
    return replace(
        plain,
        slot_row=torch.from_numpy(ask_row[has_xy][:, :2].reshape(-1)),
        slot_bin=torch.from_numpy(grid.encode(value)),
        slot_value=torch.from_numpy(value),
        slot_axis=torch.tensor([0, 1] * int(has_xy.sum()), dtype=torch.uint8),
        ask_row=torch.from_numpy(ask_row),
        ask_sample=torch.arange(len(questions)),
        ask_xy=torch.from_numpy(np.where(has_xy[:, None], 2 * target - 1, 0).astype(np.float32)),
        ask_has_xy=torch.from_numpy(has_xy),
        ask_done=torch.tensor([float(bool(q.done)) for q in questions]),
        ask_has_done=torch.tensor(has_done),
        ask_has_hit=torch.tensor([q.known for q in questions]),
        token_ask=torch.from_numpy(np.repeat(np.arange(len(cells)), [len(c.hit) for c in cells])),
        token_centre=torch.from_numpy(np.concatenate([c.centre for c in cells])),
        token_half=torch.from_numpy(np.concatenate([c.half for c in cells])),
        token_hit=torch.from_numpy(hit),
        token_offset=torch.from_numpy(np.concatenate([c.offset for c in cells])),
        token_next=torch.from_numpy(np.concatenate([c.next for c in cells])),
        questions=tuple(questions),
        counts={
            **plain.counts, "slot": len(value), "point": int(has_xy.sum()), "done": sum(has_done), "image_token": known,
            "hit": int(hit.sum()),
        },
    )
