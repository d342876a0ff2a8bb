"""bootstrap.npz: replicate vectors with what makes two of them comparable, the images and the seed of their weights."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts.evaluation import Evaluation
from coordvlm.utils.errors import DataError
from coordvlm.utils.files import atomic_write_bytes

FloatArray = NDArray[np.float64]


def save_replicates(path: Path, evaluation: Evaluation, *, image_ids: NDArray[np.int64], seed: int) -> None:
    """Write every replicate vector, with image ids and seed; an earlier file is replaced as a whole."""
    arrays: dict[str, Any] = {f"metric/{name}": vector for name, vector in evaluation.replicates.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, image_ids=np.asarray(image_ids, dtype=np.int64), seed=np.int64(seed), **arrays)
    atomic_write_bytes(path, buffer.getvalue())


def load_replicates(first: Path, second: Path) -> Mapping[str, tuple[FloatArray, FloatArray]]:
    """name -> both runs' replicates, for the metrics that both have.

    Raises:
        DataError: other images or another seed: the replicates would not be paired and the interval of a difference wrong.
    """
    with np.load(first, allow_pickle=False) as a, np.load(second, allow_pickle=False) as b:
        for path, data in ((first, a), (second, b)):
            if "image_ids" not in data or "seed" not in data:
                raise DataError("must be a bootstrap file with image_ids and seed", where=path, value=sorted(data)[:5])
        if not np.array_equal(a["image_ids"], b["image_ids"]):
            raise DataError(f"must be evaluated on the same images as {first}", where=second, value=f"{len(b['image_ids'])} images")
        if int(a["seed"]) != int(b["seed"]):
            raise DataError(f"must use the same bootstrap seed as {first}", where=second, value=int(b["seed"]))
        shared = [key for key in a.files if key.startswith("metric/") and key in b.files]
        return {key.removeprefix("metric/"): (a[key], b[key]) for key in shared}
