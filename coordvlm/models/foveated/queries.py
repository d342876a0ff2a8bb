"""Where the queries of the fine pass come from.

Shapes: B clips, T frames, W width of the language model, L tokens.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection

import torch
from torch import Tensor, nn

from coordvlm.contracts import ClipBatch
from coordvlm.models.wide import AtLeastFloat32
from coordvlm.utils.errors import ConfigError, ContractError

#: ``llm``: the state at the frame before. ``fixed``: the static query, again. ``random``: drawn anew for every frame. ``orthogonal``: one
#: fixed query per frame, at right angles to those of the others. ``diverse``: ``llm`` without its part along the frame before's query.
#: ``swapped``: those of another clip of the batch, see ``others``: a control.
MODES = ("llm", "fixed", "random", "orthogonal", "diverse", "swapped")
FIRST = ("init", "question")
#: Those that read states of the pass before.
_FROM_STATES = ("llm", "diverse", "swapped")


class QueryPlan(AtLeastFloat32):
    """The learned queries, and how the others are made.

    ``static`` (of the coarse pass) and ``init`` (of the first fine frame) start from N(0, 1), the size of states after the last norm.
    Ten times smaller and they all but vanish beside the patches' keys: attention starts uniform and stays there.

    Args:
        width: W. mode: of ``MODES``. first: the first frame's query: ``init``, the learned one, or ``question``, the state at the mode
            token.
        trained: of ``coarse`` and ``fine``, the passes whose losses train. num_frames: T. A learned query that no trained pass reads is
            frozen.
        seed: of the learned queries and of ``random`` and ``orthogonal``.
    """

    def __init__(self, width: int, *, mode: str, first: str, trained: Collection[str], num_frames: int, seed: int) -> None:
        super().__init__()
        if mode not in MODES:
            raise ConfigError(f"module.queries must be one of {', '.join(MODES)}, got {mode!r}")
        if first not in FIRST:
            raise ConfigError(f"module.first_query must be one of {', '.join(FIRST)}, got {first!r}")
        self.mode, self.first, self.seed = mode, first, seed
        generator = torch.Generator().manual_seed(seed)
        self.static = nn.Parameter(torch.randn(width, generator=generator))
        self.init = nn.Parameter(torch.randn(width, generator=generator))
        by_state = "fine" in trained and mode in _FROM_STATES
        self.init.requires_grad_(by_state and first == "init")
        # The fine pass sees what the static query gave by the states of all frames but the last.
        self.static.requires_grad_("coarse" in trained or ("fine" in trained and mode == "fixed") or (by_state and num_frames > 1))

    @property
    def from_states(self) -> bool:
        """Whether queries are states of the pass before."""
        return self.mode in _FROM_STATES

    def plan(self, hidden: Tensor, batch: ClipBatch, mode: str | None = None) -> Tensor:
        """[B, T, W], queries of the next pass. hidden: [B, L, W], final states of the pass before. mode: if not the configured one."""
        mode = self.mode if mode is None else mode
        shape = (len(batch), batch.num_frames, hidden.shape[-1])
        if mode == "fixed":
            return self.static.to(hidden.dtype).expand(shape)
        if mode == "random":
            return self.drawn(batch, hidden)
        if mode == "orthogonal":
            return self.orthogonal(shape[1], shape[2]).to(hidden).expand(shape)
        planned = torch.cat((self.first_of(hidden, batch)[:, None], hidden[:, batch.mode_col + 1 : batch.answer_col - 1]), 1)
        if mode == "swapped":
            return planned[_others(batch)]
        return apart(planned) if mode == "diverse" else planned

    def first_of(self, hidden: Tensor, batch: ClipBatch) -> Tensor:
        """[B, W], the query of the first frame. hidden: of a pass, as far as the mode token at least."""
        if self.first == "init":
            return self.init.to(hidden.dtype).expand(len(batch), -1)
        return hidden[:, batch.mode_col]

    def stepped(self, state: Tensor, before: Tensor | None, batch: ClipBatch) -> Tensor:
        """[B, W], the query that a state [B, W] gives where frames are looked at one by one. before: the state one frame earlier."""
        if self.mode == "swapped":
            return state[_others(batch)]
        if self.mode == "diverse" and before is not None:
            return apart(torch.stack((before, state), 1))[:, 1]
        return state

    def drawn(self, batch: ClipBatch, like: Tensor) -> Tensor:
        """[B, T, W] from N(0, 1). In evaluation by (seed, clip id), so that batches do not matter; in training anew each time."""
        shape = (batch.num_frames, like.shape[-1])
        if torch.is_grad_enabled():
            return torch.randn((len(batch), *shape), device=like.device).to(like.dtype)
        made = [torch.randn(shape, generator=torch.Generator().manual_seed(_key(self.seed, i))) for i in batch.ids]
        return torch.stack(made).to(like)

    def orthogonal(self, num: int, width: int) -> Tensor:
        """float32[num, width], at right angles to each other and as long as N(0, 1) on average.

        Raises:
            ConfigError: more frames than dimensions.
        """
        if num > width:
            raise ConfigError(f"module.queries=orthogonal: {num} frames cannot have orthogonal queries in {width} dimensions")
        drawn = torch.randn(width, num, generator=torch.Generator().manual_seed(self.seed))
        q: Tensor = torch.linalg.qr(drawn)[0]
        return q.T.contiguous() * math.sqrt(width)


def others(batch: ClipBatch) -> Tensor | None:
    """long[B], whose queries stand in for each clip's own: the nearest clip before it, round and round, that shows another video, of its
    own kind of question where there is one. Clips of one video have much the same plan. None where the whole batch shows one."""
    num = len(batch)
    sources, kinds = batch.sources or tuple(map(str, batch.ids)), batch.kinds or ("",) * num
    found = []
    for b in range(num):
        before = [c for c in ((b - n) % num for n in range(1, num)) if sources[c] != sources[b]]
        if not before:
            return None
        found.append(next((c for c in before if kinds[c] == kinds[b]), before[0]))
    return torch.tensor(found, device=batch.input_ids.device)


def _others(batch: ClipBatch) -> Tensor:
    if (found := others(batch)) is None:
        raise ContractError(
            f"module.queries=swapped gives a clip the queries of another, and a batch of {len(batch)} shows one video alone; "
            "see data.batch_size and data.eval_batch_size"
        )
    return found


def apart(queries: Tensor) -> Tensor:
    """[B, T, W] -> the same without each one's part along the one before it, at their own lengths; the first stays."""
    before = torch.nn.functional.normalize(queries[:, :-1].float(), dim=-1)
    later = queries[:, 1:].float()
    rest = later - (later * before).sum(-1, keepdim=True) * before
    sized = torch.nn.functional.normalize(rest, dim=-1) * later.norm(dim=-1, keepdim=True)
    return torch.cat((queries[:, :1], sized.to(queries.dtype)), 1)


def _key(seed: int, clip_id: int | str) -> int:
    return (seed * 1_000_003 + zlib.crc32(str(clip_id).encode())) % 2**63
