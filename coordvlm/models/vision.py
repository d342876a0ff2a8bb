"""From uint8 patches to image tokens: normalisation on the device, a patch embedding that is one matmul, batched attention.

Shapes: P patches, Nv image tokens after merging, D language width, ps patch side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


class PixelNorm(nn.Module):
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


class BatchedVisionAttention(nn.Module):
    """The tower's attention with images of one size in one SDPA call; the library's SDPA path loops over images.

    Shares the original's parameters (names ``qkv.*`` and ``proj.*`` stay).
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.qkv: nn.Linear = original.qkv  # type: ignore[assignment]
        self.proj: nn.Linear = original.proj  # type: ignore[assignment]
        self.num_heads: int = original.num_heads  # type: ignore[assignment]

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: object) -> Tensor:
        """[P, width] -> [P, width]; ``cu_seqlens`` int[I + 1] bounds the images, ``position_embeddings`` (cos, sin) [P, head width]."""
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # [P, heads, head width]
        cos, sin = (x.unsqueeze(1).float() for x in position_embeddings)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
        parts: list[Tensor] = []
        low = start = 0
        while start < len(lengths):  # runs of equal length
            stop = start
            while stop < len(lengths) and lengths[stop] == lengths[start]:
                stop += 1
            high = low + lengths[start] * (stop - start)
            run = [x[low:high].unflatten(0, (stop - start, -1)).transpose(1, 2) for x in (q, k, v)]
            parts.append(F.scaled_dot_product_attention(*run).transpose(1, 2).flatten(0, 1))
            low, start = high, stop
        return self.proj((parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1))  # type: ignore[no-any-return]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    y = x.float()
    low, high = y.chunk(2, -1)
    return torch.addcmul(y * cos, torch.cat((-high, low), -1), sin).to(x.dtype)


def specialise_for_stills(visual: nn.Module) -> None:
    """Swap a Qwen vision tower's patch embedding, and its attention when it runs SDPA, for the ones above, in place."""
    visual.patch_embed = StillPatchEmbed(visual.patch_embed)  # type: ignore[arg-type]
    if visual.config._attn_implementation == "sdpa":  # type: ignore[union-attr]
        for block in visual.blocks:  # type: ignore[union-attr]
            block.attn = BatchedVisionAttention(block.attn)
