"""Hand-made batches of counting for tests of everything right of the collator: no tokenizer, no image, no model.

Every sample is its image tokens, in rows, then ``<x> <y> <done>``; ids 0 pad, 1 image, 2 to 4 the three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coordvlm.contracts import Batch, ModelOutput
from coordvlm.coords.grid import Grid
from tests.batches import K9

PAD, IMAGE, X, Y, DONE = range(5)
#: Columns of the made-up states that stand for heads: point, done, next, hit, offset; then the coordinate bins.
_FIRST_BIN = 7


@dataclass(frozen=True)
class Ask:
    """One question: cells of the image (rows, columns), the unmarked objects in [0, 1], and what is learned from it."""

    cells: tuple[int, int]
    unmarked: tuple[tuple[float, float], ...]
    has_xy: bool = True
    has_done: bool = True
    has_hit: bool = True
    size: tuple[int, int] = (640, 480)


#: Two objects, none left, one without done, none and nothing to learn but hits, three of which two share a cell.
RAGGED: tuple[Ask, ...] = (
    Ask((2, 3), ((0.1, 0.2), (0.9, 0.7))),
    Ask((2, 2), (), has_xy=False),
    Ask((1, 2), ((0.75, 0.4),), has_done=False, size=(100, 50)),
    Ask((2, 2), (), has_xy=False, has_done=False),
    Ask((3, 2), ((0.6, 0.1), (0.55, 0.95), (0.9, 0.7)), size=(384, 384)),
)
#: A prompt of which nothing is known: what a rank gets that a batch has nothing for.
UNKNOWN = Ask((2, 2), (), has_xy=False, has_done=False, has_hit=False)


def make_questions(asks: Sequence[Ask], *, grid: Grid = K9, nearest: bool = False) -> Batch:
    """A batch of questions. ``nearest``: any unmarked object will do, so all their tokens are true ones."""
    width = max(a.cells[0] * a.cells[1] for a in asks) + 3
    ids, image, ask_row, lengths = [], [], [], []
    tokens: dict[str, list[list[float] | float]] = {"ask": [], "centre": [], "half": [], "hit": [], "offset": [], "next": []}
    slots: list[tuple[int, int, float, int]] = []
    for b, ask in enumerate(asks):
        rows, columns = ask.cells
        number = rows * columns
        ids.append([IMAGE] * number + [X, Y, DONE] + [PAD] * (width - number - 3))
        image += [b * width + i for i in range(number)]
        ask_row.append([b * width + number + i for i in range(3)])
        lengths.append(number + 3)
        for r in range(rows):
            for c in range(columns):
                inside = [(x, y) for x, y in ask.unmarked if int(x * columns) == c and int(y * rows) == r]
                centre, half = ((2 * c + 1) / columns - 1, (2 * r + 1) / rows - 1), (1 / columns, 1 / rows)
                first = inside[0] if inside else None
                tokens["ask"].append(b)
                tokens["centre"].append(list(centre))
                tokens["half"].append(list(half))
                tokens["hit"].append(float(bool(inside)))
                away = [(2 * p - 1 - m) / h for p, m, h in zip(first or (0.0, 0.0), centre, half, strict=True)]
                tokens["offset"].append(away if first else [0.0, 0.0])
                tokens["next"].append(float(ask.has_xy and bool(inside) and (nearest or ask.unmarked[0] in inside)))
        if ask.has_xy:
            slots += [(ask_row[b][axis], int(grid.encode(value)), value, axis) for axis, value in enumerate(ask.unmarked[0])]
    num, none = len(asks), torch.zeros(0, dtype=torch.long)
    has_xy, has_done = torch.tensor([a.has_xy for a in asks]), torch.tensor([a.has_done for a in asks])
    hit, has_hit = torch.tensor(tokens["hit"]), torch.tensor([a.has_hit for a in asks])
    return Batch(
        input_ids=torch.tensor(ids), lengths=torch.tensor(lengths), prompt_lengths=torch.tensor(lengths),
        position_ids=torch.arange(width).expand(3, num, width).contiguous(), image_pos=torch.tensor(image),
        pixels=torch.zeros(4 * len(image), 3, 2, 2, dtype=torch.uint8),
        image_grid_thw=torch.tensor([[1, 2 * a.cells[0], 2 * a.cells[1]] for a in asks]),
        text_row=none, text_target=none, text_is_end=none.bool(),
        slot_row=torch.tensor([s[0] for s in slots], dtype=torch.long), slot_bin=torch.tensor([s[1] for s in slots], dtype=torch.long),
        slot_value=torch.tensor([s[2] for s in slots], dtype=torch.float32),
        slot_axis=torch.tensor([s[3] for s in slots], dtype=torch.uint8),
        box_slot=none.view(0, 4), box_sample=none, box_prev=none,
        counts={
            "text": 0, "slot": len(slots), "box": 0, "point": int(has_xy.sum()), "done": int(has_done.sum()),
            "image_token": sum(a.cells[0] * a.cells[1] for a in asks if a.has_hit), "hit": int(hit.sum()),
        },
        ids=tuple(f"image_{b}" for b in range(num)), sizes=tuple(a.size for a in asks),
        ask_row=torch.tensor(ask_row), ask_sample=torch.arange(num),
        ask_xy=torch.tensor([[2 * v - 1 for v in a.unmarked[0]] if a.has_xy else [0.0, 0.0] for a in asks]), ask_has_xy=has_xy,
        ask_done=torch.tensor([float(not a.unmarked) for a in asks]), ask_has_done=has_done, ask_has_hit=has_hit,
        token_ask=torch.tensor(tokens["ask"]), token_centre=torch.tensor(tokens["centre"]), token_half=torch.tensor(tokens["half"]),
        token_hit=hit, token_offset=torch.tensor(tokens["offset"]), token_next=torch.tensor(tokens["next"]).bool(),
    )


def answers_of(states_BTC: Tensor, batch: Batch) -> ModelOutput:
    """What heads might give for these made-up states: some of their columns, at the rows the heads read."""
    flat = states_BTC.flatten(0, 1)
    x, y, done = flat[batch.ask_row].unbind(1)
    token = flat[batch.image_pos]
    return ModelOutput(
        point_xy=torch.stack((x[:, 0], y[:, 1]), -1), done_logit=done[:, 2], token_next=token[:, 3], token_hit=token[:, 4],
        token_offset=token[:, 5:7], slot_logits=flat[batch.slot_row][:, _FIRST_BIN:],
    )


def random_states(batch: Batch, *, seed: int = 0, grid: Grid = K9, dtype: torch.dtype = torch.float64) -> Tensor:
    """``dtype``[B, T, 7 + K] standard normal, a leaf that requires grad."""
    shape = (*batch.input_ids.shape, _FIRST_BIN + grid.num_bins)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).requires_grad_()
