"""Random numbers as a pure function of a key, so that nothing depends on workers, order or what was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np


def keyed_generator(seed: int, *key: int | str) -> np.random.Generator:
    """A generator whose stream depends on ``(seed, *key)`` only: equal across processes, machines and runs.

    The key is hashed (SHA-256, 128 bits), so two different keys never share a stream.
    """
    digest = hashlib.sha256(repr((int(seed), *key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
