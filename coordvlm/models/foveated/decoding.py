"""What the foveated model does one token after the other: looking frame by frame, and writing answers.

Shapes: B clips, T frames, L tokens, W width, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from coordvlm.contracts import ClipBatch
from coordvlm.coords import readout
from coordvlm.models.foveated.model import Foveated, Pass
from coordvlm.models.foveated.vision import Looked, PatchCache


@dataclass(frozen=True)
class Written:
    """Decoded answers, n steps at most.

    Args:
        token_ids: per clip int64[tokens], the end included where it was reached.
        values: float32[B, 3, 2], the coordinates at the first two steps by argmax, expectation and local expectation; NaN where the step's
            token is no coordinate.
        ended: bool[B].
    """

    token_ids: tuple[NDArray[np.int64], ...]
    values: NDArray[np.float32]
    ended: NDArray[np.bool_]


@torch.no_grad()
def look_one_by_one(model: Foveated, batch: ClipBatch, cache: PatchCache, *, attention: bool = False) -> Pass:
    """Autoregressive inference: every query is the state at the frame before *as it was seen in this pass*. No frame is looked at twice.

    The first query is that of the fine pass: learned, or the state at ``<coarse>`` after the question, which needs no frame; so with one
    frame this is the fine pass. Later ones are states of the ``<fine>`` sequence, which training with one iteration never uses as
    queries: what is lost against ``fine`` is the plan *and* that habit. What a mode does with queries is done here, too; modes without
    queries from states are as in the fine pass.
    """
    num, frames = len(batch), batch.num_frames
    nothing = torch.zeros(num, frames, model.table.weight.shape[1], device=batch.input_ids.device)
    like = model.embed(batch, nothing, "fine")
    start = batch.mode_col + 1
    asked = model.run(model.embed(batch, nothing, "coarse")[:, :start], batch.position_ids[:, :start], batch.attention_mask[:, :start])
    past = DynamicCache()

    def step(embeds: Tensor, stop: int) -> Tensor:
        first = stop - embeds.shape[1]
        return model.run(embeds, batch.position_ids[:, first:stop], batch.attention_mask[:, :stop], cache=past)

    step(like[:, :start], start)
    given = None if model.queries.from_states else model.queries.plan(asked, batch)
    queries: list[Tensor] = []
    looked: list[Looked] = []
    tokens: list[Tensor] = []
    earlier: Tensor | None = None
    state = model.queries.first_of(asked, batch)
    clips = torch.arange(num, device=batch.input_ids.device) * frames
    for t in range(frames):
        query = model.queries.stepped(state, earlier, batch) if given is None else given[:, t]
        queries.append(query)
        seen, token = model.look(cache.frames(clips + t), query, attention=attention)
        looked.append(seen)
        tokens.append(token)
        earlier, state = state, step(token[:, None].to(like.dtype), start + t + 1)[:, -1]
    z = torch.stack(tokens, 1)
    maps = None
    if attention:  # [layers, B, h, N] per frame -> [layers, B * T, h, N], clip by clip
        maps = torch.stack([x.attention for x in looked if x.attention is not None], 2).flatten(1, 2)
    together = Looked(torch.stack([x.features for x in looked], 1).flatten(0, 1), maps)
    return Pass(torch.stack(queries, 1).flatten(0, 1), together, z, model.states(batch, z, "fine"))


@torch.no_grad()
def write_answers(model: Foveated, batch: ClipBatch, z: Tensor, arm: str, *, max_new_tokens: int, values_K: Tensor, window: int) -> Written:
    """Greedy answers after frames z [B, T, W]. Answers that the batch may carry are not looked at.

    Args:
        values_K: of the coordinate bins, normalised. window: bins each side of the best one, for the local expectation.
    """
    num, device, stop = len(batch), batch.input_ids.device, batch.answer_col
    past = DynamicCache()
    mask, at = batch.attention_mask[:, :stop], batch.position_ids[:, :stop]
    hidden = model.run(model.embed(batch, z, arm)[:, :stop], at, mask, cache=past)[:, -1]
    position = at[:, -1:]
    end = model.rows.columns(torch.tensor(model.vocab.end_id, device=device))
    running = torch.ones(num, dtype=torch.bool, device=device)
    base, bins = model.rows.num_base, model.rows.num_bins
    columns, read = [], torch.full((num, 3, 2), float("nan"), device=device)
    for n in range(max_new_tokens):
        logits = model.logits(hidden)
        column = torch.where(running, logits.argmax(-1), end)
        if n < 2 and bins:
            slots = logits[:, base : base + bins]
            local = readout.local_expectation(slots, values_K, window)
            ways = (readout.argmax(slots, values_K), readout.expectation(slots, values_K), local)
            is_bin = (column >= base) & (column < base + bins)
            read[:, :, n] = torch.where(is_bin[:, None], torch.stack(ways, 1).float(), float("nan"))
        columns.append(column)
        running = running & (column != end)
        if n + 1 == max_new_tokens or not bool(running.any()):
            break
        mask = torch.cat((mask, mask.new_ones(num, 1)), 1)
        position = position + 1
        embeds = model.rows.embed(model.rows.token_ids(column)[:, None], model.table)
        hidden = model.run(embeds, position, mask, cache=past)[:, -1]
    table = torch.stack(columns, 1)
    ended = (table == end).any(1)
    ids = model.rows.token_ids(table).cpu().numpy()
    stops = torch.where(ended, (table == end).int().argmax(1) + 1, table.shape[1]).cpu().numpy()
    return Written(tuple(row[:n].astype(np.int64) for row, n in zip(ids, stops, strict=True)), read.cpu().numpy(), ended.cpu().numpy())
