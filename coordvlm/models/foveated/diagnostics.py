"""What a foveated model's queries do: how much they differ, what happens without or against them, and what each frame adds.

All numbers come from the path that answers, with the depth, the temperature and the top-k it has.

Shapes: B clips, T frames, F = B * T, W width of the language model, D of the vision tower, L tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from coordvlm.contracts import ClipBatch
from coordvlm.models.foveated.model import Foveated, Pass
from coordvlm.models.foveated.vision import Looked, PatchCache

_SIDE = 384.0


@dataclass(frozen=True)
class QueryFacts:
    """About the queries of a pass. Cosines of fewer than two are NaN.

    Args:
        std: standard deviation over all frames, averaged over dimensions: 0 where every frame gets the same query. rms: their size.
        cos_frames: mean cosine of two frames' queries of one clip. cos_clips: of two clips' queries at one frame: near 1, the plan does not
            depend on the clip. cos_static: with the query of the coarse pass.
        opposite: how far features move when the query is turned round, ``|f(q) - f(-q)| / |f(q)|``. 0: the query is not read.
        orthogonal: the same for a random query at a right angle, equally long.
    """

    std: float
    rms: float
    cos_frames: float
    cos_clips: float
    cos_static: float
    opposite: float
    orthogonal: float


@torch.no_grad()
def query_facts(model: Foveated, batch: ClipBatch, cache: PatchCache, found: Pass) -> QueryFacts:
    """Of one pass over ``cache``, the frames that it saw."""
    flat = found.queries.float()
    queries = flat.view(len(batch), batch.num_frames, -1)
    unit = F.normalize(queries, dim=-1)
    static = F.normalize(model.queries.static.float(), dim=-1)
    against = {"opposite": -flat, "orthogonal": at_right_angles(flat, batch.ids)}
    moved = {name: _moved(model, cache, q.to(found.queries.dtype), found.looked.features) for name, q in against.items()}
    return QueryFacts(
        std=float(flat.std(0, correction=0).mean()), rms=float(flat.square().mean().sqrt()), cos_frames=_between(unit),
        cos_clips=_between(unit.transpose(0, 1)), cos_static=float((unit @ static).mean()), **moved,
    )


def _between(unit: Tensor) -> float:
    """Mean cosine of pairs along the middle axis of float[A, n, W] unit vectors."""
    num = unit.shape[1]
    if num < 2:
        return float("nan")
    total = unit.sum(1).square().sum(-1) - num  # the sum over all ordered pairs of two different ones
    return float((total / (num * (num - 1))).mean())


def _moved(model: Foveated, cache: PatchCache, queries: Tensor, features: Tensor) -> float:
    other = model.vision.attend(cache, queries).features.float()
    return float(((other - features.float()).norm(dim=-1) / features.float().norm(dim=-1)).mean())


def at_right_angles(queries: Tensor, ids: Collection[int | str]) -> Tensor:
    """float[F, W] -> random queries orthogonal to them and as long, the same for the same clip ids."""
    key = zlib.crc32(",".join(map(str, ids)).encode())
    drawn = torch.randn(queries.shape, generator=torch.Generator().manual_seed(key)).to(queries)
    unit = F.normalize(queries, dim=-1)
    rest = drawn - (drawn * unit).sum(-1, keepdim=True) * unit
    turned: Tensor = F.normalize(rest, dim=-1) * queries.norm(dim=-1, keepdim=True)
    return turned


def up_to_frame(batch: ClipBatch, last: int) -> ClipBatch:
    """The batch whose answer is asked for after frame ``last`` (from 0): later frames are no part of the sequence.

    Raises:
        ValueError: no such frame.
    """
    if not 0 <= last < batch.num_frames:
        raise ValueError(f"clips have {batch.num_frames} frames, got frame {last}")
    cut = batch.num_frames - 1 - last
    width, stop = batch.input_ids.shape[1], batch.mode_col + 2 + last

    def without(x: Tensor) -> Tensor:
        return torch.cat((x[:, :stop], x[:, batch.answer_col :]), 1)

    def moved(rows: Tensor) -> Tensor:
        return rows - (torch.div(rows, width, rounding_mode="floor") + 1) * cut

    mask = without(batch.attention_mask)
    frames = batch.frames[:, : last + 1]
    at = torch.arange(len(batch), device=mask.device)[:, None] * (width - cut) + batch.mode_col + 1
    return replace(
        batch, input_ids=without(batch.input_ids), attention_mask=mask, position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
        lengths=mask.sum(1), prompt_lengths=batch.prompt_lengths - cut, frames=frames, evidence=batch.evidence[:, : last + 1],
        image_pos=(at + torch.arange(last + 1, device=mask.device)).flatten(), text_row=moved(batch.text_row),
        slot_row=moved(batch.slot_row), ask_row=moved(batch.ask_row),
    )  # fmt: skip


@dataclass(frozen=True)
class FrameSums:
    """Per frame, over the clips of a batch: nll float64[T] in nats over ``tokens`` tokens each; error float64[T], summed distances of
    ``points`` points, px on a side of 384 (None where no head reads points)."""

    nll: NDArray[np.float64]
    tokens: int
    error: NDArray[np.float64] | None
    points: int


@torch.no_grad()
def frame_sums(model: Foveated, batch: ClipBatch, z: Tensor, arm: str, *, points: bool) -> FrameSums:
    """How likely the true answer is when it is asked for after frame t of z [B, T, W], for every t.

    Args:
        arm: ``coarse`` or ``fine``: the mode token. points: whether a head reads points.
    """
    needs = {"text_nll", "slot_logits", "slot_lse"} | ({"point_xy"} if points else set())
    nll, error = [], []
    for t in range(batch.num_frames):
        part = up_to_frame(batch, t)
        seen = z[:, : t + 1]
        hidden = model.states(part, seen, arm)
        output = model.read(Pass(z.new_zeros(0), Looked(z.new_zeros(0)), seen, hidden), part, needs)
        assert output.text_nll is not None
        assert output.slot_logits is not None
        assert output.slot_lse is not None
        own = output.slot_logits.gather(1, part.slot_bin[:, None]).squeeze(1)
        nll.append(float(output.text_nll.double().sum() + (output.slot_lse - own).double().sum()))
        if points and output.point_xy is not None:
            off = (output.point_xy.clamp(-1, 1) - part.ask_xy) * (_SIDE / 2)
            error.append(float(off.norm(dim=-1).double().sum()))
    tokens = len(batch.text_row) + len(batch.slot_row)
    return FrameSums(np.asarray(nll), tokens, np.asarray(error) if error else None, len(batch.ask_sample))


@torch.no_grad()
def feature_cosine(one: Pass, other: Pass) -> float:
    """Mean cosine of what two passes saw of the same frames."""
    return float(F.cosine_similarity(one.looked.features.float(), other.looked.features.float(), dim=-1).mean())
