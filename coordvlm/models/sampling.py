"""Drawing the next token instead of taking the most probable one: temperature and nucleus (top-p) sampling.

Every row draws from a stream of its own, made from (seed, sample id, attempt). So an answer does not depend on the other samples of its
batch, nor on how many rows are still running, beyond what rounding does to the probabilities.

Shapes: B rows, C columns of the head, S steps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coordvlm.utils.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How an attempt after the first, greedy one is drawn.

    Args:
        temperature: logits are divided by it; above 0.
        top_p: only the most probable tokens that together reach this probability can be drawn, in (0, 1].
        seed: of all streams.
    Source of top-p: Holtzman et al. 2020, arXiv:1904.09751.
    """

    temperature: float
    top_p: float
    seed: int

    def __post_init__(self) -> None:
        if not (_is_number(self.temperature) and self.temperature > 0):
            raise ConfigError(f"decode.temperature must be above 0, got {self.temperature!r}; the first attempt is greedy anyway")
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ConfigError(f"decode.top_p must lie in (0, 1], got {self.top_p!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ConfigError(f"decode.seed must be an integer of at least 0, got {self.seed!r}")

    def uniforms(self, ids: Sequence[int | str], *, attempt: int, steps: int) -> Tensor:
        """float32[B, S] in [0, 1): one stream per sample and attempt."""
        return torch.from_numpy(np.stack([self._stream(i, attempt).random(steps, dtype=np.float32) for i in ids]))

    def _stream(self, sample_id: int | str, attempt: int) -> np.random.Generator:
        digest = hashlib.sha256(repr((self.seed, "decode", sample_id, attempt)).encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    def choose(self, logits_BC: Tensor, uniform_B: Tensor) -> Tensor:
        """long[B]: the column at which the cumulative probability of the nucleus, most probable column first, passes ``uniform``.

        Equal probabilities keep the order of their columns. A column at -inf is never drawn.
        """
        z_BC = logits_BC.float()
        cooled = (z_BC - z_BC.amax(-1, keepdim=True)) / self.temperature  # the largest is 0 however small the temperature
        probability, column = cooled.softmax(-1).sort(dim=-1, descending=True, stable=True)
        reached = probability.cumsum(-1)
        kept = (reached - probability < self.top_p) & (probability > 0)
        kept[:, 0] = True
        num = kept.sum(-1, keepdim=True)
        mass = reached.gather(1, num - 1)
        at = (reached <= uniform_B[:, None] * mass).sum(-1, keepdim=True)
        return column.gather(1, torch.minimum(at, num - 1)).squeeze(1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
