"""One seed for everything; 0 is a seed like any other."""

from __future__ import annotations

import random
import secrets

from coordvlm.utils.errors import ConfigError

#: NumPy takes 32 bits.
MAX_SEED = 2**32 - 1


def choose_seed(seed: int | None) -> int:
    """``seed`` itself, or a new one for None; the caller records what it got.

    Raises:
        ConfigError: not an integer in [0, 2**32 - 1].
    """
    if seed is None:
        return secrets.randbelow(2**31)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed={seed!r}: must be an integer in [0, {MAX_SEED}], or null for a new one that is recorded")
    return seed


def seed_everything(seed: int | None) -> int:
    """Seed Python, NumPy and torch (all devices); data loader workers derive theirs from torch's.

    Returns:
        The seed used, to be written into run.json.
    """
    import numpy as np
    import torch

    used = choose_seed(seed)
    random.seed(used)
    np.random.seed(used)
    torch.manual_seed(used)
    return used


def seed_rank(seed: int, rank: int) -> None:
    """Streams of its own for every rank but the first, once all have built the same model: dropout must differ between them."""
    if rank:
        seed_everything((seed + 1_000_003 * rank) % (MAX_SEED + 1))
