"""Batched decoding with all read-outs of every coordinate.

The token fed back is the greedy one, or one that was drawn, never a read-out. So one decode yields every read-out: what the expectation
or the local window would have said is stored beside the emitted bin. Scores come from the raw distribution, before the grammar's mask
and before a temperature.

Shapes: B rows, C columns of the head, K bins, S steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coordvlm.contracts import Batch, Decoded, Grammar
from coordvlm.coords import readout
from coordvlm.models.backbone import Backbone
from coordvlm.models.cache import RowCache
from coordvlm.models.heads import BOX_HEADS
from coordvlm.models.sampling import Sampling
from coordvlm.utils.errors import ConfigError

#: Rows are compacted once this share of the allocated ones has finished; compacting copies the cache.
_COMPACT_AT = 0.25


@dataclass(frozen=True)
class _Trace:
    """What one step records, for the rows still running: long/float[b]; ``head`` float32[b, 4] or, without a head, [b, 0]."""

    rows: Tensor
    column: Tensor
    logprob: Tensor
    bin: Tensor
    expectation: Tensor
    local: Tensor
    mass: Tensor
    head: Tensor


class Decoder:
    """Decodes the prompts of a batch.

    Args:
        values_K: float32[K], ``grid.bin_values()``.
        max_new_tokens: budget per image, end of turn included.
        grammar: mask over the next token, or None.
        mass_radius: r of ``Decoded.mass``, in bins. local_window: half width of the ``local`` read-out, in bins.
    """

    def __init__(
        self, backbone: Backbone, values_K: Tensor, *, max_new_tokens: int, grammar: Grammar | None, mass_radius: int, local_window: int
    ) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"decode.max_new_tokens must be at least 1, got {max_new_tokens}")
        self.backbone, self.values, self.max_new_tokens, self.grammar = backbone, values_K, max_new_tokens, grammar
        self.mass_radius, self.local_window = mass_radius, local_window
        self.box_head = next((name for name in BOX_HEADS if name in backbone.heads), None)

    @torch.no_grad()
    def decode(self, batch: Batch, *, sampling: Sampling | None = None, attempt: int = 0) -> list[Decoded]:
        """One ``Decoded`` per sample, in batch order. Answers that the batch may carry are not looked at.

        Args:
            sampling: how tokens are drawn; None takes the most probable one. attempt: number of the draw, part of its seed.
        """
        started = time.perf_counter()
        bb = self.backbone
        device = batch.input_ids.device
        num, width = batch.input_ids.shape
        lengths = batch.prompt_lengths
        longest = int(lengths.max())
        self.values = self.values.to(device)
        features = bb.image_features(batch.pixels, batch.image_grid_thw)
        cache = RowCache(longest + self.max_new_tokens)
        hidden = bb.hidden(
            batch.input_ids[:, :longest],
            batch.position_ids[:, :, :longest],
            features=features,
            image_pos=batch.image_pos // width * longest + batch.image_pos % width,
            cache=cache,
        )
        rows = torch.arange(num, device=device)
        last = hidden[rows, lengths - 1]
        rope = batch.position_ids[:, rows, lengths - 1].amax(0) + 1  # long[B]
        at = lengths.clone()
        running = torch.ones(num, dtype=torch.bool, device=device)  # a row that is done stays done, also while it is carried along
        state = None if self.grammar is None else self.grammar.start(num, device)
        end = bb.rows.columns(torch.tensor(bb.vocab.end_id, device=device))
        uniform = torch.empty(0)
        if sampling is not None:
            uniform = sampling.uniforms(batch.ids, attempt=attempt, steps=self.max_new_tokens).to(device)
        steps: list[_Trace] = []
        for step in range(self.max_new_tokens):
            pick = self._greedy if sampling is None else partial(sampling.choose, uniform_B=uniform[rows, step])
            trace, state = self._choose(rows, last, state, pick)
            steps.append(trace)
            running = running & (trace.column != end)
            left = int(running.sum())
            if not left or step + 1 == self.max_new_tokens:
                break
            token = bb.rows.token_ids(trace.column)
            if left <= (1 - _COMPACT_AT) * len(rows):
                keep = running.nonzero().squeeze(1)
                rows, token, at, rope, running = rows[keep], token[keep], at[keep], rope[keep], running[keep]
                state = None if state is None else state[keep]
                cache.keep(keep)
            mask = cache.step(at, int(at.max()) + 1)
            positions = rope[None, :, None].expand(3, -1, 1)
            last = bb.hidden(token[:, None], positions, cache=cache, attention_mask=mask)[:, -1]
            at, rope = at + 1, rope + 1
        return self._collect(batch, steps, int(end), time.perf_counter() - started)

    def _choose(
        self, rows: Tensor, hidden: Tensor, state: Tensor | None, pick: Callable[[Tensor], Tensor]
    ) -> tuple[_Trace, Tensor | None]:
        bb = self.backbone
        z = bb.logits(hidden)
        base, k = bb.rows.num_base, bb.rows.num_bins
        lse = z.logsumexp(-1)
        masked = z
        if state is not None:
            assert self.grammar is not None
            masked = z.masked_fill(~self.grammar.allowed(state), float("-inf"))
        column = pick(masked)
        if state is not None:
            assert self.grammar is not None
            state = self.grammar.advance(state, column)
        bin_ = torch.where((column >= base) & (column < base + k), column - base, -1)
        s = z[:, base : base + k]
        expectation = local = mass = torch.zeros_like(lse)
        if k:  # a format that writes digits has no coordinate columns
            expectation = readout.expectation(s, self.values)
            local = readout.local_expectation(s, self.values, self.local_window)
            mass = readout.mass_near(s, lse, bin_.clamp(min=0), self.mass_radius)
        head = z[:, :0] if self.box_head is None else bb.heads[self.box_head](hidden)
        return _Trace(rows, column, z.gather(1, column[:, None]).squeeze(1) - lse, bin_, expectation, local, mass, head), state

    def _greedy(self, z: Tensor) -> Tensor:
        """Highest column; among exactly equal ones the smallest token id, as argmax over an ordinary table would choose."""
        top, column = z.max(-1)
        ties = (z == top[:, None]).sum(-1) > 1
        if bool(ties.any()):
            ids = self.backbone.rows.token_ids(torch.arange(z.shape[1], device=z.device))
            tied_ids = torch.where(z == top[:, None], ids, ids.max() + 1).argmin(-1)
            column = torch.where(ties, tied_ids, column)
        return column

    def _collect(self, batch: Batch, steps: list[_Trace], end: int, seconds: float) -> list[Decoded]:
        num, total = len(batch), len(steps)
        names = ("column", "logprob", "bin", "expectation", "local", "mass", "head")
        kinds = {n: getattr(steps[0], n) for n in names}
        table = {n: torch.zeros(total, num, *x.shape[1:], dtype=x.dtype, device=x.device) for n, x in kinds.items()}
        for i, step in enumerate(steps):
            for name in names:
                table[name][i, step.rows] = getattr(step, name)
        table["id"] = self.backbone.rows.token_ids(table["column"])
        # after a row's end token its cells hold nothing: its length is the first end token
        host = {name: value.cpu().numpy() for name, value in table.items()}
        patch = self.backbone.hf.config.vision_config.patch_size
        grids = batch.image_grid_thw.cpu().tolist()
        out = []
        for b in range(num):
            ends = np.flatnonzero(host["column"][:, b] == end)
            stop = int(ends[0]) + 1 if len(ends) else total
            cells = {name: host[name][:stop, b] for name in host}
            out.append(
                Decoded(
                    sample_id=batch.ids[b],
                    token_ids=cells["id"].astype(np.int64),
                    logprob=cells["logprob"].astype(np.float32),
                    bin=cells["bin"].astype(np.int64),
                    expectation=cells["expectation"].astype(np.float32),
                    local=cells["local"].astype(np.float32),
                    mass=cells["mass"].astype(np.float32),
                    truncated=not len(ends),
                    seconds=seconds / num,
                    model_size=(grids[b][2] * patch, grids[b][1] * patch),
                    head_box=self._head_box(cells["head"], ended=bool(len(ends))),
                )
            )
        return out

    def _head_box(self, boxes_S4: NDArray[np.float32], *, ended: bool) -> NDArray[np.float32] | None:
        """float32[4] read off the state that the head was trained on; ``boxes_S4``: those of all steps of an answer."""
        if self.box_head is None or (self.box_head == "box_end" and not ended):
            return None
        return np.asarray(boxes_S4[0 if self.box_head == "box_start" else -1], dtype=np.float32)
