"""From uint8 patches to image tokens: normalisation on the device, a patch embedding that is one matmul, batched attention.

Shapes: P patches, Nv image tokens after merging, D language width, ps patch side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coordvlm.models.wide import AtLeastFloat32


class StillPatchEmbed(nn.Module):
    """The tower's patch embedding for still images.

    Qwen repeats a still image ``temporal_patch`` times and convolves in 3-D; with equal frames the kernel's temporal sum gives the same
    result at half the work, as one matmul (a strided 3-D convolution is slow on most back ends). Parameter names stay ``proj.*``.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.proj: nn.Conv3d = original.proj  # type: ignore[assignment]

    def forward(self, patches: Tensor) -> Tensor:
        """float[P, 3 * ps * ps] -> [P, width]."""
        weight = self.proj.weight.sum(2).flatten(1)
        return F.linear(patches.to(weight.dtype), weight, self.proj.bias)


class PixelNorm(AtLeastFloat32):
    """uint8 -> normalised float on the device: ``(x / 255 - mean) / std`` per channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        m, s = torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
        self.register_buffer("scale", (1 / (255 * s))[:, None, None], persistent=False)
        self.register_buffer("shift", (-m / s)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8[P, 3, ps, ps] -> float32[P, 3 * ps * ps]."""
        return torch.addcmul(self.shift, pixels.float(), self.scale).flatten(1)


class Groups:
    """Segments of a packed sequence (images, or Qwen2.5's windows) gathered by length, so that attention runs once per length.

    The blocks of a tower share one object: bounds are read to the host once per forward, not once per block.
    """

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, _Plan]] = []

    def plan(self, cu_seqlens: Tensor) -> _Plan:
        """The plan of these bounds; the same tensor object gets the same plan. Two are kept: Qwen2.5 alternates between two."""
        for bounds, plan in self._known:
            if bounds is cu_seqlens:
                return plan
        made = _make_plan(cu_seqlens)
        self._known = [*self._known[-1:], (cu_seqlens, made)]
        return made


class _Plan(NamedTuple):
    """``runs``: (segments, patches in each). ``order``: long[P] making equal lengths neighbours, and its ``inverse``; None: they are."""

    runs: tuple[tuple[int, int], ...]
    order: Tensor | None
    inverse: Tensor | None


def _make_plan(cu_seqlens: Tensor) -> _Plan:
    bounds = np.asarray(cu_seqlens.tolist(), dtype=np.int64)
    starts, lengths = bounds[:-1], np.diff(bounds)
    changes = np.flatnonzero(np.diff(lengths)) + 1
    if len(changes) + 1 == len(np.unique(lengths)):
        order = None
        runs = tuple((len(part), int(part[0])) for part in np.split(lengths, changes))
    else:
        by_length = np.argsort(lengths, kind="stable")
        values, counts = np.unique(lengths, return_counts=True)
        runs = tuple(zip(counts.tolist(), values.tolist(), strict=True))
        order = np.concatenate([np.arange(s, s + n) for s, n in zip(starts[by_length], lengths[by_length], strict=True)])
    if order is None:
        return _Plan(runs, None, None)
    index = torch.from_numpy(order).to(cu_seqlens.device)
    return _Plan(runs, index, torch.from_numpy(np.argsort(order)).to(cu_seqlens.device))


class BatchedVisionAttention(nn.Module):
    """The tower's attention with all images, or windows, of one size in one SDPA call; the library's SDPA path loops over them.

    Shares the original's parameters (names ``qkv.*`` and ``proj.*`` stay).
    """

    def __init__(self, original: nn.Module, groups: Groups | None = None) -> None:
        super().__init__()
        self.qkv: nn.Linear = original.qkv  # type: ignore[assignment]
        self.proj: nn.Linear = original.proj  # type: ignore[assignment]
        self.num_heads: int = original.num_heads  # type: ignore[assignment]
        self.groups = groups or Groups()

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: object) -> Tensor:
        """[P, width] -> [P, width]; ``cu_seqlens`` int[S + 1] bounds the segments, ``position_embeddings`` (cos, sin) [P, head width]."""
        plan = self.groups.plan(cu_seqlens)
        if plan.order is not None:
            hidden_states = hidden_states[plan.order]
            position_embeddings = (position_embeddings[0][plan.order], position_embeddings[1][plan.order])
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # [P, heads, head width]
        cos, sin = (x.unsqueeze(1).float() for x in position_embeddings)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        parts: list[Tensor] = []
        low = 0
        for num, length in plan.runs:
            high = low + num * length
            run = [x[low:high].unflatten(0, (num, length)).transpose(1, 2) for x in (q, k, v)]
            parts.append(F.scaled_dot_product_attention(*run).transpose(1, 2).flatten(0, 1))
            low = high
        out = self.proj((parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1))
        return out if plan.inverse is None else out[plan.inverse]  # type: ignore[no-any-return]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    y = x.float()
    low, high = y.chunk(2, -1)
    return torch.addcmul(y * cos, torch.cat((-high, low), -1), sin).to(x.dtype)


def specialise_for_stills(visual: nn.Module) -> None:
    """Swap a Qwen vision tower's patch embedding, and its attention when it runs SDPA, for the ones above, in place.

    Qwen2-VL, Qwen2.5-VL and Qwen3-VL name both alike. Flash attention is batched already and eager attention is a reference: they stay.
    """
    visual.patch_embed = StillPatchEmbed(visual.patch_embed)  # type: ignore[arg-type]
    if visual.config._attn_implementation == "sdpa":  # type: ignore[union-attr]
        groups = Groups()
        for block in visual.blocks:  # type: ignore[union-attr]
            block.attn = BatchedVisionAttention(block.attn, groups)
